"""The dashboard's server side: who may look, the API, live events, the page's files."""
