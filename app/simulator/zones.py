"""The IANA time zone of a place, as far as people usually ask: a table, because the model must answer without I/O."""

_ZONES = {
    "Africa": "Accra Algiers Cairo Casablanca Johannesburg Lagos Nairobi Tunis",
    "America": "Anchorage Bogota Caracas Chicago Denver Detroit Halifax Havana Lima Los_Angeles Mexico_City Montevideo"
    " New_York Panama Phoenix Santiago Sao_Paulo Toronto Vancouver",
    "Asia": "Baghdad Bangkok Beirut Colombo Dhaka Dubai Hong_Kong Jakarta Jerusalem Karachi Kathmandu Kolkata"
    " Kuala_Lumpur Manila Riyadh Seoul Shanghai Singapore Taipei Tashkent Tehran Tokyo",
    "Atlantic": "Azores Bermuda Canary Reykjavik",
    "Australia": "Adelaide Brisbane Darwin Hobart Melbourne Perth Sydney",
    "Europe": "Amsterdam Athens Belgrade Berlin Bratislava Brussels Bucharest Budapest Copenhagen Dublin Helsinki"
    " Istanbul Kyiv Lisbon Ljubljana London Luxembourg Madrid Monaco Moscow Oslo Paris Prague Riga Rome Sofia"
    " Stockholm Tallinn Vienna Vilnius Warsaw Zagreb Zurich",
    "Pacific": "Auckland Fiji Honolulu Tahiti",
}
_ALIASES = {
    "argentina": "America/Argentina/Buenos_Aires",
    "barcelona": "Europe/Madrid",
    "beijing": "Asia/Shanghai",
    "bengaluru": "Asia/Kolkata",
    "boston": "America/New_York",
    "buenos aires": "America/Argentina/Buenos_Aires",
    "california": "America/Los_Angeles",
    "cape town": "Africa/Johannesburg",
    "china": "Asia/Shanghai",
    "delhi": "Asia/Kolkata",
    "edinburgh": "Europe/London",
    "frankfurt": "Europe/Berlin",
    "france": "Europe/Paris",
    "geneva": "Europe/Zurich",
    "germany": "Europe/Berlin",
    "hamburg": "Europe/Berlin",
    "hawaii": "Pacific/Honolulu",
    "india": "Asia/Kolkata",
    "italy": "Europe/Rome",
    "japan": "Asia/Tokyo",
    "kyoto": "Asia/Tokyo",
    "milan": "Europe/Rome",
    "mumbai": "Asia/Kolkata",
    "munich": "Europe/Berlin",
    "new delhi": "Asia/Kolkata",
    "norway": "Europe/Oslo",
    "osaka": "Asia/Tokyo",
    "rio de janeiro": "America/Sao_Paulo",
    "san francisco": "America/Los_Angeles",
    "seattle": "America/Los_Angeles",
    "spain": "Europe/Madrid",
    "washington": "America/New_York",
}
_CITIES = {
    city.replace("_", " ").lower(): f"{area}/{city}" for area, cities in _ZONES.items() for city in cities.split()
} | _ALIASES


def zone_of(place: str) -> str:
    """The IANA name where the place is known; the place itself otherwise, for the tool to make sense of."""
    if place.upper() in {"UTC", "GMT"}:
        return "UTC"
    return _CITIES.get(place.lower(), place)
