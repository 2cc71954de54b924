"""The facts of a text: what ``extract`` finds where a request brings no schema of its own.

The descriptions are for the model; every list may be empty, and a field the text says nothing of is null.
"""

from datetime import date

from pydantic import BaseModel, Field


class Person(BaseModel):
    """A person the text names."""

    name: str = Field(description="The name as the text writes it, without titles.")
    role: str | None = Field(default=None, description="What the person is or does there.")


class Organisation(BaseModel):
    """A company, an authority, a club, a school."""

    name: str = Field(description="The name as the text writes it.")
    kind: str | None = Field(default=None, description="What kind of organisation it is.")


class Place(BaseModel):
    """A place the text names."""

    name: str = Field(description="The name as the text writes it.")
    country: str | None = Field(default=None, description="The country, if the text makes it clear.")


class Event(BaseModel):
    """Something that happens at a time the text names."""

    what: str = Field(description="What happens, in a few words.")
    day: date | None = Field(default=None, description="The day, as YYYY-MM-DD, if the text makes it clear.")
    said: str | None = Field(default=None, description="The time in the text's own words.")


class Amount(BaseModel):
    """A number that means something: a price, a distance, a count."""

    value: float = Field(description="The number alone.")
    unit: str | None = Field(default=None, description="Its currency or unit: EUR, km, people.")
    what: str | None = Field(default=None, description="What it is the amount of.")


class Facts(BaseModel):
    """The facts of a text."""

    title: str = Field(description="A title for the text, of at most ten words.")
    summary: str = Field(description="What the text says, in one or two sentences.")
    language: str | None = Field(default=None, description="The text's language, as ISO 639-1: en, de, fr.")
    people: list[Person] = Field(default_factory=list, description="The people it names, each once.")
    organisations: list[Organisation] = Field(default_factory=list, description="The organisations it names.")
    places: list[Place] = Field(default_factory=list, description="The places it names, each once.")
    events: list[Event] = Field(default_factory=list, description="What happens at which time.")
    amounts: list[Amount] = Field(default_factory=list, description="The amounts it names.")
    keywords: list[str] = Field(default_factory=list, description="Up to ten words to find the text by.")
