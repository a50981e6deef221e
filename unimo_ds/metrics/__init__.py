"""Scores of predictions against the truth, each a pure function that gives the number of its task's official evaluation.

ranking          recall@K of retrieval, and its level by chance
classification   accuracy, Matthews, Pearson and Spearman correlation: GLUE, SNLI-VE
answers          VQA accuracy and soft targets; exact match and F1 of SQuAD and CoQA
captions         BLEU, ROUGE-L, CIDEr-D: COCO captions, question generation
ptb, java        words as those evaluations count them; METEOR and SPICE, which are Java programs
summaries        ROUGE-1, 2, L and Lsum: CNN/DailyMail, Gigaword

All scores are fractions (CIDEr-D: 0 to 10), where papers print percent. Empty or unequal inputs are a ValueError.
"""
