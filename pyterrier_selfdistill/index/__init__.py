"""The dense index that knows its encoder and is built atomically, on one machine or several."""
