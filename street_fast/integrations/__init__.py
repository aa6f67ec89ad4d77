"""HTTP servers of others that a StreetWebSocketServer can be attached to; each is imported only when it is used."""
