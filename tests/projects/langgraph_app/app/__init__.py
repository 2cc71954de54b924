"""The support desk. Beside Millrace this package has the name of its server."""
