"""An order of thirty fields and more, nested, and a text it stands in: for what is told of objects."""

from collections.abc import Iterator
from typing import Any


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_DATE = {"type": "string", "format": "date"}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Order",
    "description": "An order in a shop.",
    **_object(
        number=_TEXT,
        status={"enum": ["new", "paid", "shipped"]},
        ordered_on=_DATE,
        customer={"$ref": "#/$defs/Customer"},
        address=_object(street=_TEXT, city=_TEXT, postcode=_TEXT, country=_TEXT),
        items={"type": "array", "items": {"$ref": "#/$defs/Item"}, "minItems": 1},
        payment=_object(
            method={"enum": ["card", "invoice"]}, reference=_TEXT, due_on=_DATE, settled={"type": "boolean"}
        ),
        delivery=_object(carrier=_TEXT, tracking=_TEXT),
        totals=_object(net=_NUMBER, shipping=_NUMBER, tax=_NUMBER, gross=_NUMBER, currency={"enum": ["EUR", "USD"]}),
        note={"type": ["string", "null"]},
    ),
    "$defs": {
        "Customer": _object(name=_TEXT, email={"type": "string", "format": "email"}, phone=_TEXT, company=_TEXT),
        "Item": _object(sku=_TEXT, name=_TEXT, quantity={"type": "integer", "minimum": 1}, unit_price=_NUMBER),
    },
}

TEXT = """Order number: A-1042, shipped, placed on 2026-03-14.
Name: Ada Lovelace, ada@example.com, phone: +44 20 7946 0018, company: Analytical Engines Ltd.
Ship to street: 12 St James Square, city: London, postcode: SW1Y 4JH, country: United Kingdom.
SKU: BG-40, name: Brass gear, quantity: 2, unit price: 12.50;
SKU: PC-100, name: Punched cards, quantity: 3, unit price: 8.20.
By invoice, reference: INV-7781, due on 2026-04-14. Carrier: Royal Mail, tracking: RM 77 01 GB.
Net 49.60, shipping 5.90, tax 11.10, gross 66.60 EUR. Note: leave it at the door."""

ORDER: dict[str, Any] = {
    "number": "A-1042",
    "status": "shipped",
    "ordered_on": "2026-03-14",
    "customer": {
        "name": "Ada Lovelace",
        "email": "ada@example.com",
        "phone": "+44 20 7946 0018",
        "company": "Analytical Engines Ltd",
    },
    "address": {
        "street": "12 St James Square",
        "city": "London",
        "postcode": "SW1Y 4JH",
        "country": "United Kingdom",
    },
    "items": [
        {"sku": "BG-40", "name": "Brass gear", "quantity": 2, "unit_price": 12.5},
        {"sku": "PC-100", "name": "Punched cards", "quantity": 3, "unit_price": 8.2},
    ],
    "payment": {"method": "invoice", "reference": "INV-7781", "due_on": "2026-04-14", "settled": True},
    "delivery": {"carrier": "Royal Mail", "tracking": "RM 77 01 GB"},
    "totals": {"net": 49.6, "shipping": 5.9, "tax": 11.1, "gross": 66.6, "currency": "EUR"},
    "note": "leave it at the door",
}
"""What is in it."""


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Each number, text, boolean and null, and where it stands, in the order in which they are written."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from leaves(item, (*path, at))
    else:
        yield path, value
