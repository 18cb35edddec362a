"""Letters for `noise.py`: jamo, spelling variants, typing slips and the two keyboard layouts. Standard library only.

A syllable is 0xAC00 + (initial * 21 + vowel) * 28 + final (The Unicode Standard, 3.12). Layouts: the Korean two-set
layout (KS X 5002) over QWERTY.
"""

from __future__ import annotations

import re
import unicodedata
from random import Random

INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
FINALS = ["", *"ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"]

KEYS = dict(
    zip(
        "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅁㄴㅇㄹㅎㅗㅓㅏㅣㅋㅌㅊㅍㅠㅜㅡㅃㅉㄸㄲㅆㅒㅖ",
        "qwertyuiopasdfghjklzxcvbnmQWERTOP",
        strict=True,
    )
)
JAMO = {key: jamo for jamo, key in KEYS.items()}
PAIRS: dict[str, str] = dict(
    re.findall(
        r"(\S+)>(\S+)",
        "ㅗㅏ>ㅘ ㅗㅐ>ㅙ ㅗㅣ>ㅚ ㅜㅓ>ㅝ ㅜㅔ>ㅞ ㅜㅣ>ㅟ ㅡㅣ>ㅢ ㄱㅅ>ㄳ ㄴㅈ>ㄵ "
        "ㄴㅎ>ㄶ ㄹㄱ>ㄺ ㄹㅁ>ㄻ ㄹㅂ>ㄼ ㄹㅅ>ㄽ ㄹㅌ>ㄾ ㄹㅍ>ㄿ ㄹㅎ>ㅀ ㅂㅅ>ㅄ",
    )
)
SPLITS = {joined: pair for pair, joined in PAIRS.items()}
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

ALIKE = (
    *("ㅐㅔ", "ㅗㅓ", "ㅜㅡ", "ㅏㅑ", "ㅓㅕ", "ㅗㅛ", "ㅜㅠ", "ㅚㅙㅞ", "ㅢㅣ", "ㅔㅖ"),
    *("ㄱㅋㄲ", "ㄷㅌㄸ", "ㅂㅍㅃ", "ㅅㅆ", "ㅈㅊㅉ"),
)
FINAL_ALIKE = ("ㄴㅇ", "ㄴㅁ", "ㄱㅋ", "ㅂㅍ", "ㅅㅌ", "ㅅㄷ")
SPELLINGS: list[tuple[str, str]] = re.findall(
    r"(\S+)>(\S+)",
    """
    샤또>샤토 뀌베>퀴베 브뤼>브륏 쉬라즈>시라즈 소비뇽>쇼비뇽 카베르네>까베르네 누아>느와 누아>누와
    샤르도네>샤도네이 로쏘>로소 리제르바>레세르바 리제르바>리세르바 밸리>벨리 키안티>끼안띠 메를로>멜롯
    말벡>말벡크 쥬>주 도멘>도멩 리저브>리져브 프로세코>프로쎄코 말보로>말보루 빌라주>빌라쥬 로칠드>로쉴드
    모엣>모에 클리코>클리꼬 뮈지니>뮤지니 찰리스>챌리스 찰스>챨스 하이직>에드직 레인지>레인쥐 그리지오>그리조
    베이>배이 마쎄토>마세토 펜폴즈>펜폴드
    """,
)
LOOSER = str.maketrans("ㄲㄸㅃㅆㅉ", "ㅋㅌㅍㅅㅈ")
TENSER = str.maketrans("ㅋㅌㅍㅅ", "ㄲㄸㅃㅆ")


def is_syllable(letter: str) -> bool:
    return "가" <= letter <= "힣"


def is_hangul(word: str) -> bool:
    return any(map(is_syllable, word))


def is_latin(word: str) -> bool:
    return any(c.isascii() and c.isalpha() for c in strip_accents(word))


def strip_accents(text: str) -> str:
    """Drops accents of Latin letters; Hangul is left as it was."""
    bare = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return unicodedata.normalize("NFC", bare)


def split_syllable(letter: str) -> tuple[str, str, str]:
    code = ord(letter) - 0xAC00
    return INITIALS[code // 588], VOWELS[code // 28 % 21], FINALS[code % 28]


def join_syllable(initial: str, vowel: str, final: str = "") -> str:
    return chr(0xAC00 + (INITIALS.index(initial) * 21 + VOWELS.index(vowel)) * 28 + FINALS.index(final))


# ---- Typing slips


def _other(jamo: str, groups: tuple[str, ...], allowed: str | list[str], rng: Random) -> str:
    alike = [j for group in groups if jamo in group for j in group if j != jamo and j in allowed]
    return rng.choice(alike) if alike else jamo


def _beside(jamo: str, allowed: str, rng: Random) -> str:
    """The jamo on the key left or right of this one's, if it is of the same kind."""
    key = KEYS.get(jamo, "")
    row = next((r for r in ROWS if key and key in r), "")
    keys = [row[i] for i in (row.find(key) - 1, row.find(key) + 1) if row and 0 <= i < len(row)]
    near = [JAMO[k] for k in keys if JAMO[k] in allowed]
    return rng.choice(near) if near else jamo


def typo(word: str, rng: Random) -> str:
    """One slip in a Korean word: a similar or neighbouring jamo, a lost or doubled one, syllables swapped or lost."""
    places = [i for i, c in enumerate(word) if is_syllable(c)]
    for _ in range(20):
        at = rng.choice(places)
        changed = _slip(word, at, rng)
        if changed != word:
            return changed
    return word


def _slip(word: str, at: int, rng: Random) -> str:
    initial, vowel, final = split_syllable(word[at])
    kind = rng.choice(("vowel", "vowel", "initial", "initial", "final", "lose", "double", "beside", "swap", "drop"))
    if kind in ("swap", "drop"):
        if len(word) < 3 or at + 1 >= len(word):
            return word
        return word[:at] + (word[at + 1] + word[at] + word[at + 2 :] if kind == "swap" else word[at + 1 :])
    if kind == "double":  # a key held too long: the last jamo of the syllable again, alone
        return word[: at + 1] + (final or vowel) + word[at + 1 :]
    if kind == "vowel":
        vowel = _other(vowel, ALIKE, VOWELS, rng)
    elif kind == "initial":
        initial = _other(initial, ALIKE, INITIALS, rng)
    elif kind == "final":
        final = _other(final, FINAL_ALIKE, FINALS, rng) if final else rng.choice(("ㄴ", "ㄹ", "ㅇ", "ㅅ"))
    elif kind == "lose":
        final = ""
    else:
        initial = _beside(initial, INITIALS, rng)
    return word[:at] + join_syllable(initial, vowel, final) + word[at + 1 :]


def latin_typo(word: str, rng: Random) -> str:
    """One slip in a Latin word: a letter lost, doubled, swapped with the next, or hit on the key beside it."""
    at = rng.choice([i for i, c in enumerate(word) if c.isalpha()])
    kind = rng.choice(("lose", "double", "swap", "beside"))
    letter = strip_accents(word[at]).lower()
    row = next((r for r in ROWS if letter in r), "")
    if kind == "beside" and row:
        here = row.index(letter)
        return word[:at] + rng.choice(row[max(0, here - 1) : here] + row[here + 1 : here + 2]) + word[at + 1 :]
    if kind == "swap":
        return word[:at] + word[at + 1 : at + 2] + word[at] + word[at + 2 :]
    return word[:at] + (word[at] * 2 if kind == "double" else "") + word[at + 1 :]


def respell(text: str, romance: bool, rng: Random) -> str:
    """Another spelling of foreign words: known variants, and tense for aspirated consonants or the reverse, which is
    how words of Romance languages vary."""
    for ours, theirs in SPELLINGS:
        if ours in text and rng.random() < 0.6:
            text = text.replace(ours, theirs)
    if not romance:
        return text
    letters = []
    for letter in text:
        if is_syllable(letter):
            initial, vowel, final = split_syllable(letter)
            if rng.random() < 0.6:
                initial = initial.translate(LOOSER)
            elif rng.random() < 0.2:
                initial = initial.translate(TENSER)
            letter = join_syllable(initial, vowel, final)
        letters.append(letter)
    return "".join(letters)


# ---- Layouts


def flip_layout(word: str) -> str:
    """The word typed with the keyboard in the other layout: 안녕 as `dkssud`, lake as `ㅣㅏㅏㄷ` composed."""
    if is_hangul(word):
        return "".join(_keys(letter) for letter in word)
    return compose("".join(JAMO.get(key, key) for key in strip_accents(word).lower()))


def _keys(letter: str) -> str:
    if not is_syllable(letter):
        return letter
    return "".join(KEYS[j] for part in split_syllable(letter) for j in SPLITS.get(part, part))


def compose(jamo: str) -> str:
    """Typed jamo as an input method shows them: joined into syllables, a final moving on where a vowel follows."""
    consonant, vowel = f"[{INITIALS}]", "(?:ㅗ[ㅏㅐㅣ]|ㅜ[ㅓㅔㅣ]|ㅡㅣ|[ㅏ-ㅣ])"
    ends = "|".join(sorted((SPLITS.get(f, f) for f in FINALS if f), key=len, reverse=True))
    syllable = re.compile(f"({consonant})({vowel})((?:{ends})(?![ㅏ-ㅣ]))?")

    def join(match: re.Match[str]) -> str:
        initial, middle, final = match.group(1), match.group(2), match.group(3) or ""
        return join_syllable(initial, PAIRS.get(middle, middle), PAIRS.get(final, final))

    return re.sub(f"{vowel}", lambda m: PAIRS.get(m.group(), m.group()), syllable.sub(join, jamo))
