"""The dense index that knows its encoder, built whole or not at all, on one machine or several."""
