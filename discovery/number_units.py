"""Numbers in a reply that are no answer though they are not the right one: of another unit, or a decade.

"One full day is 24 hours" says nothing false of how many minutes it has, and "in the 1960s" nothing false of 1969. Only
units of the list are known, and only where the question names one.
"""

from collections.abc import Sequence

from discovery.answer_words import Word, numbers_in, words_of
from discovery.question_set import Question

_SINGULAR = """
second minute hour day week month year decade century millimeter centimeter meter kilometer millimetre centimetre metre
kilometre inch yard mile gram kilogram ounce pound stone ton tonne liter litre milliliter millilitre gallon quart pint
cup bit byte degree arcminute arcsecond radian celsius fahrenheit kelvin cent dollar
"""
_UNITS = {name: name for name in _SINGULAR.split()} | {
    "foot": "foot",
    "feet": "foot",
    "inches": "inch",
    "centuries": "century",
    "c": "celsius",
    "f": "fahrenheit",
    "mm": "millimeter",
    "cm": "centimeter",
    "km": "kilometer",
    "kg": "kilogram",
    "ml": "milliliter",
    "oz": "ounce",
    "lb": "pound",
    "lbs": "pound",
    "ft": "foot",
}
_MAX_WORDS_BETWEEN = 1
"""Between a number and its unit: 128 fluid ounces."""


def is_of_another_unit(question: Question, words: Sequence[Word], end: int) -> bool:
    """Whether what ends before word `end` is a number of a unit that the question, which names units, does not name."""
    asked = {unit for word in words_of(question.question) if (unit := _unit(word.text))}
    if question.answer_type != "number" or not asked or not numbers_in(words[end - 1 : end]):
        return False
    units = [unit for word in words[end : end + 1 + _MAX_WORDS_BETWEEN] if (unit := _unit(word.text))]
    # Degrees are of a scale: 32 degrees Fahrenheit.
    found = next((unit for unit in units if unit != "degree"), units[0] if units else None)
    return found is not None and found not in asked


def is_vague_year(question: Question, words: Sequence[Word], first: int) -> bool:
    """Whether word `first` is a decade or century, "the 1960s", that has the right year in it."""
    numbers = numbers_in(words[first : first + 1])
    plural = words[first + 1] if first + 1 < len(words) else None
    if question.answer_type != "year" or not numbers or plural is None or plural.text != "s":
        return False
    begin = numbers[0].value
    length = 10 if begin % 100 else 100
    years = [number.value for answer in question.answers for number in numbers_in(words_of(answer))]
    # The "s" of "1960s" or "1960's" stands at once behind.
    return plural.start - words[first].end <= 1 and any(begin <= year < begin + length for year in years)


def _unit(text: str) -> str | None:
    return _UNITS.get(text) or _UNITS.get(text.removesuffix("s"))
