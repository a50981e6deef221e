"""The code that goes with an exported model. It knows torch and transformers only, and nothing of unimo_ds.

`unimo_ds.convert.huggingface` copies these files into the exported folder as they are; `trust_remote_code=True` runs them there.
"""
