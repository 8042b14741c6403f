"""What becomes of malformed input: thousands of examples of it for each entry point, and what they must come to.

An :class:`~.exploring.EntryPoint` says what is valid, how that is changed, and what the right answer is. A change keeps
what the input means (rows in another order, NumPy's integers), so that the answer must stay the same or an error must
say why not; or it leaves nothing to answer (a text that is missing, half of a file), so that an error must say so.
"""
