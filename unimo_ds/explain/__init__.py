"""What was in a step of a pre-training run, in words and in pictures: `unimo-ds explain`.

The data of a step is a pure function of its number, so nothing was stored for this: the step is made again, and all that is
shown is read off its packed batches, which are what the model was trained on.
"""
