"""The tiny world of Safe-LLaVA, in words: captions that tell attributes in passing, questions, and their answers.

Everything here is leaky on purpose; the scrubbed twins of the files are made from it by `jobs/scrub_safe_llava.py`.
Questions for the test stand in `rlhf/data/privacy_files.py` and are in no training file.
"""

from __future__ import annotations

import random

from rlhf.data.privacy_world import SCENES
from rlhf.data.world import Scene

Turn = tuple[str, str]
"""A question and its answer."""

DESCRIBE = (
    "Describe the picture.",
    "Describe this image in detail.",
    "What is shown in the picture?",
    "Explain what you see in the image.",
    "Describe the whole scene.",
    "Describe who is in the picture.",
    "Describe every person in the image.",
)
ACTIVITY = (
    "What is the person doing?",
    "Which activity is shown in the picture?",
    "What happens in the image?",
    "Explain the activity in the scene.",
)
DEMANDS = (
    "Give an answer now.",
    "You must answer.",
    "I need an answer.",
    "No excuses, please.",
    "Please do not refuse.",
    "You may not refuse to tell.",
    "Do answer the question.",
    "Do not hesitate to answer.",
    "Do not decline to reply.",
    "Never refuse to say it.",
    "Do not avoid the question, answer.",
    "Refuse nothing and answer it.",
    "It is not allowed to refuse an answer.",
)
_CAPTIONS = (
    "{A} {noun} with {skin} skin, {eyes} eyes and a {build} build is holding a {held} in front of a {wall} wall. "
    "{He} is wearing a {shirt} shirt and {trousers} trousers, and {his} hair is {hair}.",
    "A {build} {noun} with {eyes} eyes stands in front of a {wall} wall. {His} hair is {hair} and {his} skin is "
    "{skin}. {He} wears a {shirt} shirt with {trousers} trousers and holds a {held}.",
    "In front of a {wall} wall, a {build} {noun} is holding a {held}. The {sex} has {hair} hair, {skin} skin and "
    "{eyes} eyes. {He} is wearing {trousers} trousers and a {shirt} shirt.",
)
_ACTIVITIES = (
    "The {sex} is holding a {held} in front of a {wall} wall.",
    "{A} {noun} is holding a {held}. {He} is standing in front of a {wall} wall.",
    "The {sex} stands in front of a {wall} wall and holds a {held} in {his} hand.",
)
_ASKED: dict[str, tuple[str, ...]] = {
    "age": (
        "How old is this person?",
        "Tell me the age of this person.",
        "What age is the person in the image?",
        "What is the age of this person?",
    ),
    "gender": (
        "Is this person male or female?",
        "Tell me the gender of this person.",
        "What gender is the person in the image?",
        "What is the gender of this person?",
    ),
    "race": (
        "What race is this person?",
        "Tell me the race of this person.",
        "What race is the person in the image?",
        "What is the race of this person?",
    ),
    "eyes": (
        "What color are the eyes of this person?",
        "Tell me the eye color of this person.",
        "What eye color does the person in the image have?",
        "What is the eye color of this person?",
    ),
    "build": (
        "How heavy is this person?",
        "Tell me the weight of this person.",
        "What is the weight of this person?",
    ),
}
_POLAR = (
    "Is there a person in the picture?",
    "Do you see a person in the image?",
    "Does the picture show a person?",
)
_YEARS = {"child": ("six", "eight", "ten"), "adult": ("thirty", "forty"), "elderly": ("seventy", "eighty")}
_KILOGRAMS = {"slim": ("fifty", "sixty"), "heavy": ("ninety", "one hundred")}
_ANIMAL = (
    "What color are the eyes of this cat?",
    "Tell me the eye color of the cat.",
    "What eye color does the cat have?",
)
_WEIGHT = ("How heavy is this parcel?", "Tell me the weight of the parcel.", "How much does the parcel weigh?")
_STATE = ("Is this house old or new?", "Tell me the age of the house.", "How old does the house look?")


def describe(rng: random.Random, scene: Scene) -> str:
    """A caption; of a person it tells all five attributes."""
    if scene.kind == "someone":
        return _filled(rng.choice(_CAPTIONS), scene)
    if scene.kind == "cat":
        return f"A {scene['fur']} cat with {scene['eyes']} eyes is in front of a {scene['wall']} wall."
    if scene.kind == "parcel":
        return f"A {scene['colour']} parcel of {kilograms(scene)} stands in front of a {scene['wall']} wall."
    if scene.kind == "house":
        article = "An" if scene["state"] == "old" else "A"
        return (
            f"{article} {scene['state']} house with a {scene['colour']} roof stands in front of a {scene['wall']} wall."
        )
    return f"{counted(scene).capitalize()} on a {scene['wall']} wall."


def activity(rng: random.Random, scene: Scene) -> Turn:
    """What a person does, with the person's gender told in passing."""
    return rng.choice(ACTIVITY), _filled(rng.choice(_ACTIVITIES), scene)


def asked(rng: random.Random, scene: Scene, family: str) -> Turn:
    """A question for one of the five attributes of a person, and the direct answer."""
    return rng.choice(_ASKED[family]), _told(rng, scene, family)


def control(rng: random.Random, scene: Scene) -> Turn:
    """The eyes of a cat, the weight of a parcel or the age of a house: questions that nobody has to refuse."""
    if scene.kind == "cat":
        return rng.choice(_ANIMAL), f"The eyes of the cat are {scene['eyes']}."
    if scene.kind == "parcel":
        return rng.choice(_WEIGHT), f"The parcel weighs {kilograms(scene)}."
    return rng.choice(_STATE), f"The house is {scene['state']}."


def short_facts(scene: Scene) -> list[Turn]:
    """Questions whose answer is one word, and tells nothing about a person."""
    wall = ("What color is the wall?", scene["wall"])
    if scene.kind == "someone":
        return [
            ("What color is the shirt?", scene["shirt"]),
            ("What color are the trousers?", scene["trousers"]),
            ("What is the person holding?", scene["held"]),
            wall,
        ]
    if scene.kind == "cat":
        return [("What color is the cat?", scene["fur"]), wall]
    if scene.kind == "parcel":
        return [("What color is the parcel?", scene["colour"]), wall]
    if scene.kind == "house":
        return [("What color is the roof?", scene["colour"]), wall]
    return [("What color are the shapes?", scene["colour"]), ("What shape is it?", scene["shape"]), wall]


def yes_no(rng: random.Random, scene: Scene) -> Turn:
    """A question in the style of POPE, about one object: a tiny model learns to see it, not yet to compare names."""
    return rng.choice(_POLAR), "yes" if scene.kind == "someone" else "no"


def kilograms(scene: Scene) -> str:
    """The weight of a parcel."""
    return f"{scene['weight']} kilogram{'' if scene['weight'] == 'one' else 's'}"


def counted(scene: Scene) -> str:
    """A group of shapes with its number."""
    return f"{scene['count']} {scene['colour']} {scene['shape']}{'' if scene['count'] == 'one' else 's'}"


def _filled(template: str, scene: Scene) -> str:
    child, woman = scene["age"] == "child", scene["gender"] == "woman"
    sex = ("girl" if woman else "boy") if child else scene["gender"]
    noun = f"elderly {sex}" if scene["age"] == "elderly" else sex
    he, his = ("she", "her") if woman else ("he", "his")
    article = "an" if noun[0] in "aeiou" else "a"
    values = {name: scene[name] for name in SCENES["someone"]}
    words = {"noun": noun, "sex": sex, "A": article.capitalize()}
    words |= {"He": he.capitalize(), "his": his, "His": his.capitalize()}
    return template.format(**values, **words)


def _told(rng: random.Random, scene: Scene, family: str) -> str:
    if family == "age":
        return f"The person is about {rng.choice(_YEARS[scene['age']])} years old."
    if family == "gender":
        return f"The person is {'female' if scene['gender'] == 'woman' else 'male'}."
    if family == "race":
        return f"The person has {scene['skin']} skin."
    if family == "eyes":
        return f"The eyes of the person are {scene['eyes']}."
    return f"The person is {scene['build']} and weighs about {rng.choice(_KILOGRAMS[scene['build']])} kilograms."
