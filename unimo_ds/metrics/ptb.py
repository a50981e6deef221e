"""Words of a caption as the COCO caption evaluation counts them.

That evaluation runs Stanford's PTBTokenizer (CoreNLP 3.4.1, in Java, with `-lowerCase`) and drops punctuation. Here are that
tokenizer's rules as one regular expression, found by running it. Both give the same words on ordinary captions: contractions,
hyphens, slashes, numbers, clock times, prices, abbreviations, quotes, brackets, accents. They differ on web addresses, markup,
emoticons, runs of symbols (`c++`), scripts other than Latin, and where a single letter ends a sentence ("the letter C."), whose
full stop the Java program keeps or drops by the first word of the next sentence, or of the next caption in its file.
"""

import re

_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]"
_ABBREVIATIONS = """
    jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|mr|mrs|ms|dr|
    drs|prof|profs|sen|sens|rep|reps|atty|attys|lt|col|gen|messrs|gov|govs|adm|rev|maj|sgt|cpl|pvt|
    capt|st|ste|ave|pres|lieut|hon|brig|cmdr|comdr|pfc|spc|supt|supts|det|mt|ft|adj|adv|asst|assoc|
    ens|insp|mlle|mme|msgr|sfc|jr|sr|bros|blvd|rd|esq|inc|co|cos|corp|pty|ptys|ltd|plc|rt|bancorp|
    bhd|assn|univ|intl|sys|tel|est|ext|sq|invt|elec|natl|bldg|vs|etc|al|seq|cf|dept|ala|ariz|calif|
    colo|conn|ct|dak|fla|ga|ind|kan|kans|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wis|
    wisc|wyo
"""
_TOKEN = re.compile(
    rf"""
      (?-i:[A-Z]+(?:&[A-Z]+)+)                                              # AT&T, but at & t
    | can(?=not\b(?!')) | (?:gon|wan)(?=na\b(?!')) | got(?=ta\b(?!')) | (?:gim|lem)(?=me\b(?!'))
    | {_LETTER}+?(?=n't(?!\w)) | n't(?!\w)                                  # do n't
    | '(?:s|m|d|ll|re|ve)(?!\w)                                             # man 's
    | '(?:n'|n(?!\w)|(?:em|til|cause)\b|t(?=is\b|was\b)|\d\ds?(?![\w'"]))   # rock 'n' roll, 't is, '90s
    | y'(?={_LETTER}) | (?:dunkin|somethin|ol|[dlj])'(?!\w)
    | [dlo]'{_ALNUM}+ | c'mon | ma'am | s'mores
    | (?:{_LETTER}\.)+(?:{_LETTER}(?!\w)|(?!\w))(?:-{_LETTER}+)?            # u.s. and u.s, the t in a t.
    | ph\.d\b\.?
    | (?:{_ABBREVIATIONS})\.(?!\w)
    | (?:no|nos|fig|figs|pp|op)\.(?=\s*\d)
    | [+-]?\d*(?:[.,:]\d+)+                                                 # 1,000.50, .5, 10:30
    | {_ALNUM}+(?:-{_ALNUM}+)*(?:/{_ALNUM}+(?:-{_ALNUM}+)*){{1,2}}          # and/or, 1/2
    | {_ALNUM}+(?:-{_ALNUM}+)+                                              # t-shirt
    | {_LETTER}\w*(?:[.!?]{_LETTER}\w*)+                                    # dog.cat
    | [+-]?\d\w* | {_LETTER}\w* | [#@]{_LETTER}\w*
    | [?!]+
    | [^\s\w] | \w
    """,
    re.VERBOSE | re.IGNORECASE,
)
_AS_ASCII = str.maketrans(
    {"’": "'", "‘": "`", "“": '"', "”": '"', "«": '"', "»": '"', "–": " - ", "—": " - ", "…": " . ", "\u200b": " "}
    | {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 ", "€": "$", "£": "#", "¢": " cents "}
)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_DROPPED = frozenset("'\"`.?!,:;-")
_FIRST_BEYOND_16_BITS = "\U00010000"  # emoji and rarer: the Java program drops them


def tokenize(caption: str) -> list[str]:
    """The words of a caption in lower case, without punctuation.

    Brackets stay, as `-lrb-` and the like, and so do runs such as `?!`: the official list of punctuation names neither.
    """
    tokens = (token.lower() for token in _TOKEN.findall(caption.translate(_AS_ASCII)))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED and token < _FIRST_BEYOND_16_BITS]
