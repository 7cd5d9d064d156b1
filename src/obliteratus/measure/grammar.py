"""A little English grammar: function words, and pairs of words that do not follow each other.

Enough to tell sentences from shuffled words without a model; nothing here judges style.
"""

import itertools
import re


def _words(*lists: str) -> frozenset[str]:
    return frozenset(word for text in lists for word in text.split())


_ENGLISH = """
    the a an my your his her its our their every no this these those some any each all both of to
    in for with on at by from into about as than between through during without and or but because
    if while although though unless nor is are was were be been being am do does did has have had
    will would can could should may might must not i he she we they it you him them us me who which
    that what when where why how there here then so very more most up out off over down just also
    only
"""
_OTHERS = """
    un una el la los las de del que y en es por para con se lo al su más pero como si
    le les des du et est une dans pour qui sur pas au avec ce il elle je vous ne
    der die das und ist ein eine den dem nicht mit zu von auf für im sich es wie aus bei dass
    di che e per non sono da della gli os o um uma em do dos das não com
    het een van niet op dat te voor zijn
    i w na z do jest nie się to że co jak dla od po za ale czy przez są ma być tym ten ta
    ve bir bu için ile de da mi ne var ama çok gibi daha ben sen o en kadar olan olarak
    yang dan di ke dari untuk dengan ini itu tidak pada adalah bisa atau saya anda akan juga
    là và của có không được cho các một những trong với này khi để tôi bạn người thì ở đã sẽ
    och att det som en på är av för med den till inte har om
"""
FUNCTION_WORDS = _words(_ENGLISH, _OTHERS)
"""Of English, and of Spanish, French, German, Italian, Portuguese, Dutch, Polish, Turkish,
Indonesian, Vietnamese and Swedish, so that an answer in one of them is no word salad."""

_ARTICLES = _words("the a an")
_DETERMINERS = _ARTICLES | _words("my your our their its every")
_PREPOSITIONS = _words(
    "of to with from into at upon between among during without toward towards against"
)
_FINITE = _words("is are was were has does")
_NOUN_MODALS = _words("will can may might must")  # modal verbs that are nouns as well
_FREE_MODALS = _words("would could should shall")
_SUBJECTS = _words("i he she we they")
_OBJECTS = _words("him them us me")


def _forbidden() -> dict[str, frozenset[str]]:
    """Return, for a word, the words that do not come right after it in an English sentence."""
    after_determiner = _DETERMINERS | _PREPOSITIONS | (_FINITE - {"does"}) | _SUBJECTS | _OBJECTS
    after_determiner |= _words("and or but because although though unless that who whom which")
    after_determiner |= _words("would could should be been there")
    after_preposition = _FINITE | _FREE_MODALS | _SUBJECTS
    after_preposition |= _words("had of because although but if unless")
    result = dict.fromkeys(_DETERMINERS, after_determiner)
    result |= dict.fromkeys(_PREPOSITIONS, after_preposition)
    before_and = _words("of at into upon among during")
    result |= dict.fromkeys(before_and, after_preposition | _words("and or"))
    after_modal = _FINITE | _FREE_MODALS | _words("am had did been from than")
    result |= dict.fromkeys(_NOUN_MODALS | _FREE_MODALS, after_modal)
    result |= dict.fromkeys(_FINITE - {"does"}, _FINITE | {"than"})
    result |= dict.fromkeys(_words("do does did"), _words("is are was were of had has than"))
    result |= dict.fromkeys(_words("be been"), _FINITE | _FREE_MODALS | _words("am than"))
    result["and"] = _words("and or")
    result |= dict.fromkeys(_words("or but"), _words("and or but"))
    result["i"] = _words("of with from at is are for by has does my")
    result |= dict.fromkeys(_words("he she"), _words("of with from at am are have do his"))
    result |= dict.fromkeys(_words("we they"), _words("of with from at am is was has does"))
    return result


_FORBIDDEN = _forbidden()
_UNFINISHED = _DETERMINERS | _words("and or of because although")
_TOKEN = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*|\n|[^\sA-Za-z]")
_VOWEL = re.compile(r"[ai]|e(?!u|we)|o(?!n[ce]|ui)")
_CONSONANT = re.compile(r"[b-dfgj-np-tv-z]")
_SMALL_START = re.compile(r"[a-z]{3,}[.!?] +[a-z]{2,}")


def impossible_pairs(text: str) -> list[str]:
    """Return the neighbours in ``text`` that no English sentence has, each as "word word".

    A determiner before a verb, a full stop after "of the", "a" before a vowel, a sentence that
    begins with a small letter (in a text that has capitals). Single letters other than "a" and "I"
    are names of variables and are passed over; where there is a "b", so is "a".
    """
    tokens = _TOKEN.findall(text)
    variables = {"a", "b"} if "b" in tokens else set[str]()
    found = [
        f"{one} {other}"
        for one, other in itertools.pairwise(tokens)
        if _is_word(one) and one not in variables and _is_impossible(one.lower(), other)
    ]
    if any(character.isupper() for character in text):
        found += _SMALL_START.findall(text)
    return found


def _is_word(token: str) -> bool:
    return len(token) > 1 or token in ("a", "A", "I")


def _is_impossible(word: str, following: str) -> bool:
    if following in ".!?;":
        return len(word) > 1 and word in _UNFINISHED
    if following.lower() in _FORBIDDEN.get(word, ()):
        return _is_word(following)
    if len(following) < 3 or not following.islower():
        return False
    wrong = {"a": _VOWEL, "an": _CONSONANT}.get(word)
    return wrong is not None and wrong.match(following) is not None
