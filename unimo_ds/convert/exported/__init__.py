"""The code that goes with an exported model. It knows torch and transformers only, and nothing of unimo_ds.

`unimo_ds.convert.huggingface` copies these files into an exported folder as they are, and `trust_remote_code=True` runs them.
"""
