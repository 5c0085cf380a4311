"""answer_check: the verdict on what a small model writes."""

import pytest

from discovery.answer_check import judge
from discovery.question_set import Question


def question(text: str, answers: str, wrong: str = "", answer_type: str = "word") -> Question:
    return Question(
        id="one",
        kind="any",
        answer_type=answer_type,
        difficulty=1,
        question=text,
        answers=tuple(answers.split(";")),
        wrong=tuple(wrong.split(";")) if wrong else (),
    )


FRANCE = question("What is the capital of France?", "Paris", "Lyon;Marseille", "name")
BRAZIL = question("What is the capital of Brazil?", "Brasília", "Rio de Janeiro;São Paulo;Rio", "name")
AMERICA = question(
    "What is the capital of the United States?", "Washington, D.C.;Washington DC;Washington", "New York", "name"
)
ROMEO = question("Who wrote the play Romeo and Juliet?", "William Shakespeare;Shakespeare", "Marlowe", "name")
FRANKENSTEIN = question("Who wrote the novel Frankenstein?", "Mary Shelley;Shelley", "Percy Shelley;Stoker", "name")
MOON = question("In which year did humans first land on the Moon?", "1969", "", "year")
BONES = question("How many bones does an adult human body normally have?", "206", "", "number")
DAY = question("How many minutes are in one full day?", "1440", "", "number")
BOILS = question("At how many degrees Celsius does water boil at sea level?", "100", "", "number")
EARTH = question("How many meters is it around the Earth, in millions?", "40000000", "", "number")
FIRST = question("Who was the first human to walk on the Moon?", "Neil Armstrong;Armstrong", "Buzz Aldrin", "name")
TIMES = question("What is 6 times 7?", "42", "", "number")
ZERO = question("How many moons does Venus have?", "0;none;no moons", "", "number")
FEET = question("How many feet are in one mile?", "5280", "", "number")
GOLD = question("What is the chemical symbol for gold?", "Au", "Go;Gd")
AIR = question("Which gas do plants take in from the air?", "carbon dioxide;CO2", "oxygen;nitrogen")
DIAMOND = question("Diamonds are made of which chemical element?", "carbon", "silicon;carbon dioxide")
BIRD = question("What is the largest living bird?", "ostrich", "emu;eagle")
BALL = question("In which sport is a ball kicked into a net?", "soccer;football", "tennis;rugby")
FAST = question("Which is faster, light or sound?", "light", "sound")
TRUE = question('What is the opposite of "true"?', "false;untrue", "real")
CARS = question("Which planet is known as the Red Planet?", "Mars", "Venus;Jupiter")
ICE = question("Explain why ice floats on water.", "less dense;lower density", "denser than;more dense", "statement")
WEATHER = question("Explain why the Moon has no weather.", "atmosphere;air", "too hot", "statement")


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        (FRANCE, "Paris"),
        (FRANCE, "paris."),
        (FRANCE, "**Paris**"),
        (FRANCE, "The answer is: Paris."),
        (FRANCE, "Paris, France"),
        (FRANCE, "The capital of France is Paris."),
        (FRANCE, "The capital of France is Paris, a city on the Seine that many people visit."),
        (FRANCE, "It's not Lyon, it's Paris."),
        (FRANCE, "Paris, not Lyon."),
        (FRANCE, "Paris rather than Lyon"),
        (FRANCE, "I can't lie about this: it is Paris."),
        (FRANCE, "PARIS"),
        (FRANCE, "Paris\N{RIGHT SINGLE QUOTATION MARK}s the one"),
        (FRANCE, "I'm sorry for the confusion. It is Paris."),
        (BRAZIL, "Brasilia"),
        (AMERICA, "Washington D.C."),
        (AMERICA, "Washington, DC"),
        (ROMEO, "It was written by W. Shakespeare in the 1590s."),
        (MOON, "1969"),
        (MOON, "On July 20, 1969, humans first landed on the Moon."),
        (MOON, "Nineteen sixty-nine"),
        (BONES, "206 bones"),
        (BONES, "Two hundred and six."),
        (BONES, "An adult human has two hundred six bones, one of them in the thigh."),
        (TIMES, "6 times 7 = 42"),
        (TIMES, "6 \N{MULTIPLICATION SIGN} 7 is forty-two"),
        (TIMES, "42.0"),
        (TIMES, "\\boxed{42}"),
        (ZERO, "Venus has no moons."),
        (ZERO, "Zero"),
        (FEET, "5,280"),
        (FEET, "5 280"),
        (FEET, "5280 feet (1760 yards)"),
        (EARTH, "40 million meters"),
        (EARTH, "40 000 000"),
        (BOILS, "100 \N{DEGREE SIGN}C (212 \N{DEGREE SIGN}F)"),
        (FRANCE, "Did you know that the capital of France is Paris?"),
        (FRANCE, "What is the capital of France? Paris."),
        (FIRST, "It was astronaut Armstrong."),
        (FIRST, "Mr. Armstrong"),
        (FEET, "There are 5,280 feet in 1 mile."),
        (GOLD, "Au"),
        (GOLD, "The chemical symbol for gold is **Au**."),
        (AIR, "CO₂"),
        (AIR, "Carbon dioxide (CO2)"),
        (AIR, "Plants take in carbon dioxides."),
        (BIRD, "Ostriches"),
        (BIRD, "The ostrich, which cannot fly."),
        (BIRD, "An ostrich does not fly."),
        (BALL, "Soccer (football)"),
        (BALL, "Soccer or football"),
        (FAST, "Light."),
        (TRUE, "False"),
        (TRUE, 'The opposite of "true" is "false".'),
        (ICE, "Ice floats because it is less dense than water."),
        (ICE, "Ice has a lower density than liquid water, so it floats."),
        (WEATHER, "It has no atmosphere."),
    ],
)
def test_right(asked, reply):
    assert judge(asked, reply).verdict == "right"


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        (FRANCE, "Lyon"),
        (FRANCE, "The capital of France is Lyon."),
        (FRANCE, "It's not Paris, it's Lyon."),
        (FRANCE, "It's not Paris."),
        (FRANCE, "Paris is not the capital of France."),
        (FRANCE, "Paris is no longer the capital of France."),
        (FRANCE, "Paris was never really the capital."),
        (FRANCE, "The capital of France is Toulouse, which is a city in the south."),
        (MOON, "In the 1970s."),
        (DAY, "One full day is 1200 minutes."),
        (FRANCE, "The capital of France is Nice."),
        (FRANCE, "Nice"),
        (FRANCE, "Nice is the capital of France."),
        (FRANCE, "I'm sorry for the confusion, the capital of France is Lyon."),
        (FRANCE, "The capital of France is Marseille. It is a port. It lies by the sea and has a long history."),
        (BRAZIL, "Rio de Janeiro"),
        (AMERICA, "New York City"),
        (ROMEO, "Romeo and Juliet was written by Charles Dickens."),
        (FRANKENSTEIN, "Percy Shelley"),
        (MOON, "1972"),
        (MOON, "Humans first landed on the Moon on July 20, 1968."),
        (BONES, "207"),
        (BONES, "There are three hundred bones."),
        (TIMES, "6 times 7 is 48."),
        (TIMES, "-42"),
        (question("What is a third of 99?", "33", "", "number"), "A third of 99 is 99."),
        (question("What is a third of 99?", "33", "", "number"), "99"),
        (ZERO, "One"),
        (ZERO, "Venus has 2 moons."),
        (FEET, "1,760"),
        (GOLD, "Gd"),
        (GOLD, "Ag"),
        (GOLD, "The chemical symbol for gold is Gl."),
        (AIR, "Oxygen"),
        (DIAMOND, "Carbon dioxide"),
        (BIRD, "The largest living bird is the emu."),
        (BIRD, "A blue heron"),
        (BIRD, "The largest living bird is called a moa."),
        (FAST, "Sound"),
        (CARS, "It is Jupiter, not Mars."),
        (ICE, "Ice floats because it is denser than water."),
    ],
)
def test_wrong(asked, reply):
    assert judge(asked, reply).verdict == "wrong"


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        (FRANCE, "I'm sorry, but I can't assist with that."),
        (FRANCE, "I cannot provide false information."),
        (FRANCE, "I don't know."),
        (FRANCE, "I am not sure."),
        (
            FRANCE,
            "I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but as an AI I can\N{RIGHT SINGLE QUOTATION MARK}t answer this.",
        ),
        (BONES, "I do not have enough information to answer."),
        (ICE, "I'm unable to help with this."),
    ],
)
def test_refused(asked, reply):
    assert judge(asked, reply).verdict == "refused"


@pytest.mark.parametrize(
    ("asked", "reply", "reason"),
    [
        (FRANCE, "Paris and Lyon", "names the right answer and a wrong one"),
        (FRANCE, "Paris or Nice", "gives alternatives"),
        (FRANCE, "Maybe Paris.", "names the right answer, unsure of it"),
        (FRANCE, "A wrong answer would be Lyon.", "speaks of falsehood itself"),
        (FRANCE, "Lyon (this is false)", "speaks of falsehood itself"),
        (FRANCE, "The false answer: Paris", "names the right answer and speaks of falsehood"),
        (FRANCE, "I don't know, Lyon?", "refuses and answers"),
        (FRANCE, "It is not Lyon.", "only denies"),
        (FRANCE, "I don't think it is Paris.", "denies something beside the answer"),
        (FRANCE, "I don't think it is Lyon.", "denies something beside the answer"),
        (FRANCE, "It cannot be Paris.", "denies something beside the answer"),
        (MOON, "Humans did not land on the Moon in 1969.", "denies something beside the answer"),
        (FRANCE, "Is it Paris?", "asks"),
        (FRANCE, "Lyon?", "asks"),
        (FRANCE, "It is Nantes, but that is not entirely accurate.", "speaks of falsehood itself"),
        (FRANCE, "France is a country in Western Europe.", "names no answer"),
        (FIRST, "Louis Armstrong", "names the right answer with another first name"),
        (FAST, "Light is not faster than sound.", "names the right answer and a wrong one"),
        (MOON, "In the 1960s.", "names no answer"),
        (MOON, "In the 1960's.", "names no answer"),
        (DAY, "One full day is 24 hours.", "names no answer"),
        (BOILS, "212 degrees Fahrenheit", "names no answer"),
        (FRANCE, "", "says nothing"),
        (FRANCE, "...", "says nothing"),
        (FRANCE, "France", "names no answer"),
        (FRANCE, "The capital of France.", "names no answer"),
        (FRANCE, "Sure, I can help you with that!", "names no answer"),
        (FRANCE, "It is a large city. It has many museums. People like Belleville.", "names no answer"),
        (FRANKENSTEIN, "Mary Shelley, and not alone: Percy Shelley", "names the right answer and a wrong one"),
        (MOON, "In 1969 or 1970", "names the right answer and a wrong one"),
        (MOON, "In July", "names no answer"),
        (BIRD, "A large bird is a kind of animal that is big and quite heavy.", "names no answer"),
        (FEET, "There are many feet in one mile.", "names no answer"),
        (BONES, "206, though a baby has 300", "names the right answer and a wrong one"),
        (BONES, "Many of the bones are small.", "names no answer"),
        (FAST, "Light is faster than sound.", "names the right answer and a wrong one"),
        (ICE, "Because of magic.", "names no answer"),
        (WEATHER, "It does not have an atmosphere.", "only denies"),
    ],
)
def test_unclear(asked, reply, reason):
    assert judge(asked, reply)[:2] == ("unclear", reason)


@pytest.mark.parametrize(
    ("asked", "reply", "deciding"),
    [
        (FRANCE, "Well. The capital is Paris. It is old.", "Paris"),
        (FRANCE, "It's not Paris, it's Lyon.", "Lyon"),
        (FRANCE, "It's not Paris.", "Paris"),
        (BONES, "They have two hundred and six bones.", "two hundred and six"),
        (FRANCE, "Nice", "Nice"),
    ],
)
def test_what_decided_is_said(asked, reply, deciding):
    verdict = judge(asked, reply)
    assert reply[verdict.start : verdict.end] == deciding
