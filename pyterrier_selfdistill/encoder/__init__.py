"""The bi-encoder: encoding, saving and loading, precision, adapters."""
