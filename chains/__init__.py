"""The built-in agents: each file builds one, by a function that takes its model (and tools).

``registry`` names them. They know LangChain, LangGraph and ``tools/``, and nothing of the server: what is built
here can be called from a notebook as it is.
"""
