"""The bi-encoder: encoding, saving, loading, precision and adapters."""
