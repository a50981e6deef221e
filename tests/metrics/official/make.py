"""Makes the files beside it: inputs, and what official implementations give for them.

Run once, on 28 November 2026, with Python 3.11 and OpenJDK 17 (METEOR and the tokeniser of captions are Java programs):

    python -m venv official
    official/bin/pip install pycocoevalcap==1.2 scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
    official/bin/pip install rouge-score==0.1.2 transformers==4.57.1
    official/bin/pip download --no-deps -d wheels salesforce-lavis==1.0.2 lm_eval==0.4.13
    official/bin/pip download --no-deps -d wheels allennlp==0.9.0 allennlp-models==2.10.1
    official/bin/python tests/metrics/official/make.py wheels

What stands for what:

- GLUE: scikit-learn's Matthews, scipy's Pearson and Spearman, which GLUE's own evaluation calls.
- Captions: `pycocoevalcap`, which is the COCO evaluation for Python 3. SPICE is missing: its models are not on PyPI.
- VQA: the class `VQAEval` of the official tools, which LAVIS copies. Its copy is of an older version, which always normalises
  the prediction, and only the punctuation of true answers that differ. The present version of the tools
  (`PythonEvaluationTools/vqaEvaluation/vqaEval.py`) normalises both wholly, and only where the true answers differ. So
  `vqa_accuracy` below calls LAVIS's methods in the present order.
- SQuAD: the script of version 1.1 as AllenNLP 0.9 copies it, and the functions of version 2.0 as allennlp-models does.
- CoQA: its script `evaluate-v1.0.py` is in no package. `compute_scores` of EleutherAI's harness, which has the same rule on
  the same functions of SQuAD 2.0 (copied by transformers), stands in its place.
- ROUGE: `rouge-score` itself, which the project calls: the file pins its version's numbers. ROUGE-1.5.5.pl was not at hand.
"""

import json
import random
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, matthews_corrcoef

HERE = Path(__file__).parent

CAPTIONS = [
    ["A man riding a wave on top of a surfboard.", "a man is surfing a big wave", "The surfer's wave breaks.", "Surfing!"],
    ["Two dogs don't like the cat; it's hissing.", "Two dogs and a cat aren't friends", "the dogs' bowl isn't empty..."],
    ['A sign that says "STOP" (in red).', "A stop sign", "a red 'stop' sign [on a pole]", "a stop-sign at 5th Ave."],
    ["1,000 people at 10:30 p.m. in St. Louis", "a crowd of 1000 people at 10:30pm", "people, people, people"],
    ["Dunkin' Donuts and coffee for $5.50, 50% off", "coffee & donuts: $5", "a coffee/donut shop"],
    ["A well-known T-shirt of the U.S. flag", "a t-shirt, with a U.S. flag on it", "flag on a tee-shirt"],
    ["cat", "a cat", "the cat"],
    ["A café — naïve décor — on the piazza’s corner", "a “cosy” café", "café"],
    ["The man cannot, and isn't gonna, jump off Mr. Smith's 2x4", "a man isn't jumping", "the man won't jump!"],
    ["rock 'n' roll in the '90s", "A band playing rock 'n roll in the 1990's", "rock n' roll"],
    ["a a a a a a", "the the the a", "A a"],
    ["Half ½ a pizza and 1/2 a glass of wine 🍕", "pizza and wine #yum", "pizza, wine, and/or beer"],
    ["They'll say we've won, y'all, at 5 o'clock", "we won", "'tis won; 'twas lost"],
    ["A man. A dog. A frisbee?!", "man throws frisbee to dog", "what a frisbee!!"],
    ["a black-and-white photo of J.P. Morgan, Jr.", "a photo of a man", "a b&w photo from AT&T"],
    ["", "an empty caption", "..."],
]
GENERATED = [
    "a man riding a wave on a surfboard",
    "two dogs don't like a cat",
    'a "stop" sign in red',
    "1,000 people in st. louis at 10:30 p.m.",
    "",
    "a t-shirt with a u.s. flag",
    "cat",
    "a café",
    "The man isn't gonna jump!",
    "rock 'n' roll",
    "a a a a a a a a",
    "beer",
    "they'll say y'all won at 5 o'clock",
    "a man throws a frisbee to a dog, a man throws a frisbee to a dog",
    "a photo of j.p. morgan",
    "?",
]
MORE_TOKENS = [
    "The dog's owner's dogs' bowls",
    "can't won't shan't isn't I'm he'd she'll they're we've",
    "gimme lemme gotta wanna gonna",
    "3-year-old; 20-30 m.p.h.",
    "No. 7, no seven. No.",
    "e.g. this, i.e. that, etc.",
    "£5, €5, 5¢, $1,000,000.00",
    "9/11 24/7 w/o",
    "a--b - c -d e-",
    "end... middle... of",
    "wait.what",
    "red,white and blue",
    "5'10\" tall",
    "((nested) [brackets] {here})",
    "O'Neil's McDonald's l'eau d'oro ma'am c'mon",
    "T.V. t.v. TV's DVD's a.m. AM",
    "#1 hit @home",
    "\tTabs  and   spaces ",
    "ÀÉÎ Ü ß ñandú",
    "100% cotton-wool 1st 2nd 60s 60's '60s",
    "Dr. and Mrs. Smith vs. Jones Co. Ltd.",
    "M&M's and A&W",
    "on, off: up; down",
]

VQA = [
    ("yes", ["yes"] * 9 + ["no"]),
    ("Yes.", ["yes"] * 10),
    ("yes", ["yes"] * 10),
    ("two", ["2"] * 3 + ["two"] * 2 + ["3"] * 5),
    ("none", ["0", "none", "zero", "nothing"] + ["1"] * 6),
    ("the dog", ["dog", "a dog", "The dog", "dogs", "cat", "cat", "cat", "puppy", "puppy", "hound"]),
    ("dont know", ["don't know", "dont know", "unknown", "do not know"] + ["blue"] * 6),
    ("1,000", ["1000", "1,000", "1 000", "thousand"] + ["many"] * 6),
    ("10:30", ["10:30"] * 2 + ["10 30", "1030", "half past 10"] + ["11"] * 5),
    ("3.5", ["3.5", "3.5.", "35", "3,5"] + ["4"] * 6),
    ("st. louis", ["St. Louis", "st louis", "saint louis"] + ["chicago"] * 7),
    ("black/white", ["black and white", "black/white", "black / white", "white black"] + ["gray"] * 6),
    ("t-shirt", ["t shirt", "t-shirt", "tshirt", "t -shirt", "shirt"] + ["coat"] * 5),
    ("", ["", " ", "nothing", "blank"] + ["none"] * 6),
    ("a", ["a", "the", "an"] + ["b"] * 7),
    ("café ☕", ["café ☕", "Café ☕", "cafe"] + ["bar"] * 7),
    ("what?! no", ["what no", "what?!no", "what ?! no"] + ["huh"] * 7),
    ("it's", ["its", "it's", "Its"] + ["that"] * 7),
    ("yall'd've", ["y'all'd've", "yalldve"] + ["we"] * 8),
    ("somebody'd", ["somebodyd", "somebody'd"] + ["someone"] * 8),
    (" yes\n", ["yes\t"] * 10),
    ("red\tand\nblue", ["red and blue"] * 4 + ["red & blue"] * 6),
    ("no", ["yes"] * 10),
    ("5", ["five"] * 4 + ["5"] * 2 + ["6"] * 4),
    ("@home_now", ["home now", "@home now"] + ["away"] * 8),
    ("(left) side", ["left side", "left", "(left)side"] + ["right"] * 7),
]
SPANS = [
    ("the Eiffel Tower", ["Eiffel Tower", "The Eiffel tower in Paris"]),
    ("", ["nothing", "no answer"]),
    ("", [""]),
    ("the", ["a"]),
    ("an", ["apple"]),
    ("1,000 people", ["1000 people", "a thousand people"]),
    ("10:30", ["1030", "10:30 a.m."]),
    ("don't know", ["dont know", "I don't know"]),
    ("naïve café", ["naive cafe", "naïve café's"]),
    ("red red red", ["red", "red red blue"]),
    ("U.S.A.", ["usa", "the USA"]),
    ("yes", ["yes"]),
    ("no", ["Yes, the dog did", "yes", "Yes.", "he did"]),
    ("the white cat", ["white", "a white cat", "The cat is white.", "white"]),
    ("white — “cat”", ["white cat", "white — “cat”", "the-white-cat"]),
    ("theatre", ["the atre", "theatre"]),
    ("a b c d e", ["e d c b a", "a b", "c"]),
    ("no\u00a0break\tspace", ["no break space", "break"]),
    ("日本", ["日本", "日 本"]),
    ("!!!", ["?", "..."]),
]
SUMMARIES = [
    ("The cats are running.\nThey run fast!", "A cat ran.\nIt was running very fast.\nDogs watched."),
    ("", "Something happened."),
    ("something", "something"),
    ("police killed the gunman", "the gunman was killed by police"),
    ("Mr. Smith paid $1,000 at 10:30 a.m.\nHe left.", "Smith paid 1000 dollars .\nhe left at 10:30 ."),
    ("the the the the", "the cat the mat"),
    ("naïve café 日本", "naive cafe"),
    ("w1 w2 w3 w4 w5\nw1 w3 w8 w9 w5", "w1 w2 w6 w7 w8\nw3 w4 w5"),
    ("…", "..."),
    ("One sentence. ''\nAnother , said he . ''\n", "another sentence '' said one ."),
]


def module(wheels: Path, wheel: str, path: str) -> types.ModuleType:
    """One file of a package, without what the rest of the package would need."""
    (found,) = wheels.glob(f"{wheel}-*.whl")
    loaded = types.ModuleType(Path(path).stem)
    exec(zipfile.ZipFile(found).read(path), loaded.__dict__)
    return loaded


def classification() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = {
        "balanced": (rng.integers(0, 2, 50), rng.integers(0, 2, 50)),
        "rare": (rng.random(200) < 0.05, rng.random(200) < 0.02),
        "perfect": ([0, 1, 1, 0], [0, 1, 1, 0]),
        "inverse": ([0, 1, 1], [1, 0, 0]),
        "constant predictions": ([1, 1, 1, 1], [1, 0, 1, 0]),
        "constant labels": ([1, 0, 1], [0, 0, 0]),
        "both constant": ([1, 1], [1, 1]),
    }
    targets = rng.integers(0, 26, 60) / 5
    numbers = {
        "sts-b": (targets + rng.normal(0, 1, 60), targets),
        "ties": (np.round(targets + rng.normal(0, 1, 60)), targets),
        "far from zero": (1e8 + rng.normal(0, 1, 30), rng.normal(0, 1, 30)),
        "tiny": (1e-200 * rng.normal(0, 1, 9), rng.normal(0, 1, 9)),
        "two items": ([1.0, 2.0], [5.0, 0.0]),
        "monotone": ([1.0, 2.0, 3.0, 4.0], [1.0, 10.0, 100.0, 1000.0]),
        "constant": ([0.1, 0.1, 0.1], [1.0, 2.0, 3.0]),
    }
    return {
        "labels": [
            {
                "name": name,
                "predictions": np.array(predictions, int).tolist(),
                "labels": np.array(truth, int).tolist(),
                "accuracy": float(accuracy_score(truth, predictions)),
                "matthews": float(matthews_corrcoef(truth, predictions)),
            }
            for name, (predictions, truth) in labels.items()
        ],
        "numbers": [
            {
                "name": name,
                "predictions": np.array(predictions).tolist(),
                "targets": np.array(truth).tolist(),
                "pearson": _or_none(scipy.stats.pearsonr(predictions, truth).statistic),
                "spearman": _or_none(scipy.stats.spearmanr(predictions, truth).statistic),
            }
            for name, (predictions, truth) in numbers.items()
        ],
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def captions() -> dict[str, Any]:
    """Raw captions with official tokens, and the scores of three corpora: all, its first half, and random words."""
    raw = sorted({caption for several in CAPTIONS for caption in several} | set(GENERATED) | set(MORE_TOKENS))
    tokens = _tokenized(raw)
    draw = random.Random(0)
    words = ["a", "man", "dog", "on", "the", "red", "bus", "in", "park", "with", "two"]
    drawn = [[_sentence(draw, words) for _ in range(draw.randint(2, 6))] for _ in range(40)]
    corpora = {
        "all": (GENERATED, CAPTIONS),
        "half": (GENERATED[:8], CAPTIONS[:8]),
        "identical": ([several[0] for several in CAPTIONS], [several[:1] for several in CAPTIONS]),
        "drawn": ([several[0] for several in drawn], [several[1:] for several in drawn]),
        "one image": (GENERATED[:1], CAPTIONS[:1]),
    }
    scores = [
        {"name": name, "predictions": predictions, "references": references, **_caption_scores(predictions, references)}
        for name, (predictions, references) in corpora.items()
    ]
    return {
        "tokens": [{"caption": caption, "tokens": of.split()} for caption, of in zip(raw, tokens, strict=True)],
        "scores": scores,
    }


def _sentence(draw: random.Random, words: list[str]) -> str:
    return " ".join(draw.choices(words, k=draw.randint(1, 9)))


def _tokenized(raw: list[str]) -> list[str]:
    tokenized = PTBTokenizer().tokenize({index: [{"caption": caption}] for index, caption in enumerate(raw)})
    return [tokenized[index][0] for index in range(len(raw))]


def _caption_scores(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    truth = dict(enumerate(map(_tokenized, references)))
    said = {index: [words] for index, words in enumerate(_tokenized(predictions))}
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    scores = {"rouge_l": Rouge(), "cider_d": Cider(), "meteor": Meteor()}
    return {f"bleu_{n}": score for n, score in enumerate(bleu, start=1)} | {
        name: float(scorer.compute_score(truth, said)[0]) for name, scorer in scores.items()
    }


def answers(wheels: Path) -> dict[str, Any]:
    vqa = module(wheels, "salesforce_lavis", "lavis/common/vqa_tools/vqa_eval.py").VQAEval()
    squad_1 = module(wheels, "allennlp", "allennlp/tools/squad_eval.py")
    squad_2 = module(wheels, "allennlp_models", "allennlp_models/rc/tools/squad.py")
    coqa = module(wheels, "lm_eval", "lm_eval/tasks/coqa/utils.py")
    texts = sorted({text for prediction, of in VQA for text in (prediction, *of)} | set(vqa.contractions))
    return {
        "vqa_normalized": {text: _vqa_normalized(vqa, text) for text in texts},
        "vqa": [{"prediction": said, "answers": of, "accuracy": vqa_accuracy(vqa, said, of)} for said, of in VQA],
        "spans": [
            {
                "prediction": said,
                "references": of,
                "squad_1": [
                    float(squad_1.metric_max_over_ground_truths(score, said, of))
                    for score in (squad_1.exact_match_score, squad_1.f1_score)
                ],
                "squad_2": list(map(float, squad_2.get_metric_score(said, of))),
                "coqa": [float(coqa.compute_scores(of, said)[score]) for score in ("em", "f1")],
            }
            for said, of in SPANS
        ],
    }


def _vqa_stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _vqa_normalized(vqa: Any, text: str) -> str:
    return vqa.processDigitArticle(vqa.processPunctuation(_vqa_stripped(text)))


def vqa_accuracy(vqa: Any, prediction: str, answers: list[str]) -> float:
    """LAVIS's `evaluate` on texts that are normalised already, in the present version's order: it must not do so again."""
    said, *true = map(_vqa_stripped, (prediction, *answers))
    if len(set(true)) > 1:
        said, *true = (_vqa_normalized(vqa, text) for text in (said, *true))
    counter = type(vqa)(n=12)
    counter.processPunctuation = counter.processDigitArticle = lambda text: text
    question = {"answers": [{"answer": answer, "answer_id": index} for index, answer in enumerate(true)]}
    counter.vqa = types.SimpleNamespace(qa={0: question | {"question_type": "", "answer_type": ""}})
    counter.vqaRes = types.SimpleNamespace(qa={0: {"answer": said}})
    counter.evaluate([0])
    return counter.accuracy["overall"] / 100


def summaries() -> list[dict[str, Any]]:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    return [
        {"prediction": said, "reference": of, **{kind: score.fmeasure for kind, score in scorer.score(of, said).items()}}
        for said, of in SUMMARIES
    ]


def main() -> None:
    wheels = Path(sys.argv[1])
    made = {"classification": classification(), "answers": answers(wheels), "captions": captions(), "summaries": summaries()}
    for name, content in made.items():
        (HERE / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
