"""Loading changes a process for good, so each case runs in one of its own.

A child imports all of Millrace once, as the command does before it loads a target, and forks for each case: fresh
modules and a real working folder in a few milliseconds, and the test process stays as it was.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

CHILD = """
import asyncio, importlib, json, os, pickle, pkgutil, signal, sys, traceback
from pathlib import Path
import app, chains, tools

for package in (app, chains, tools):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

from app.targets import Target, TargetError, load_config, load_target

def load(*specs):
    targets = [load_target(spec, root=Path.cwd()) for spec in specs]
    return targets[0].runnable if len(targets) == 1 else [target.runnable for target in targets]

def refused(*specs, config=None):
    try:
        load_config(Path(config)) if config else load(*specs)
    except TargetError as error:
        return str(error)
    raise AssertionError("it was served")

def tell(value):
    os.write(told, json.dumps(value).encode())

print("ready", flush=True)
for line in sys.stdin:
    folder, code = json.loads(line)
    answer, told = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(30)
        os.dup2(2, 1)
        status = 1
        try:
            os.chdir(folder)
            exec(code, globals())
            status = 0
        except BaseException:
            tell(traceback.format_exc())
        finally:
            os._exit(status)
    os.close(told)
    with open(answer) as pipe:
        value = pipe.read()
    print(json.dumps([os.waitpid(child, 0)[1], value]), flush=True)
"""


class Millrace:
    """The child; calling it with a folder and code gives what the code tells."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, folder: Path, code: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([str(folder), dedent(code)]), file=self.process.stdin, flush=True)
        status, told = json.loads(self.process.stdout.readline())
        assert status == 0, told
        return json.loads(told)

    def refused(self, folder: Path, *specs: str) -> str:
        """Give the one line that the last of these targets is refused with."""
        message = self(folder, f"tell(refused(*{specs!r}))")
        assert "\n" not in message
        return str(message)

    def serves(self, folder: Path, *specs: str) -> Any:
        """Give what the last of these targets answers to the text "hi"."""
        return self(folder, f"tell([load(spec) for spec in {specs!r}][-1].invoke({{'text': 'hi'}})['text'])")


@pytest.fixture(scope="module")
def millrace() -> Iterator[Millrace]:
    command = [sys.executable, "-P", "-c", CHILD]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "a module of Millrace cannot be imported"
        yield Millrace(process)
        process.stdin.close()
        assert process.wait(10) == 0


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text))
    return path


def graph(says: str = '"served"', imports: str = "", name: str = "graph", compiled: bool = True) -> str:
    """Source of a module whose graph answers every text with the expression ``says``."""
    head = f"""\
        from typing import TypedDict
        from langgraph.graph import END, START, StateGraph
        {imports}

        class State(TypedDict):
            text: str

        def speak(state: State) -> State:
            return {{"text": {says}}}

        builder = StateGraph(State)
        builder.add_node("speak", speak)
        builder.add_edge(START, "speak")
        builder.add_edge("speak", END)
        """
    return dedent(head) + f"{name} = builder{'.compile()' if compiled else ''}\n"


# What can be served


@pytest.mark.parametrize(
    ("extra", "attribute"),
    [
        ("", "graph"),
        ("", "builder"),
        ("from langchain_core.runnables import RunnableLambda\nrun = RunnableLambda(speak)", "run"),
        ("def make():\n    return graph", "make"),
        ("def make():\n    return builder", "make"),
        ("async def make():\n    return graph", "make"),
        ("import asyncio\nasync def make():\n    await asyncio.sleep(0)\n    return builder", "make"),
        ("def make(config):\n    return graph if config == {'configurable': {}} else None", "make"),
        ("def make(config=None, **more):\n    return graph if config is None else None", "make"),
        ("class Box:\n    graph = graph", "Box.graph"),
    ],
    ids=[
        *("compiled graph", "uncompiled graph", "runnable", "factory", "factory of a builder", "async factory"),
        *("async factory that awaits", "factory with a config", "factory with a default", "dotted attribute"),
    ],
)
def test_everything_that_leads_to_a_runnable_is_served(
    millrace: Millrace, tmp_path: Path, extra: str, attribute: str
) -> None:
    put(tmp_path / "my_agents.py", graph() + extra)
    assert millrace.serves(tmp_path, f"support=my_agents:{attribute}") == "served"


def test_a_target_says_what_it_is_and_where_it_came_from(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "my_agents.py", graph())
    told = millrace(
        tmp_path,
        """
        target = load_target("support=my_agents:graph", root=Path.cwd())
        tell([target.name, target.origin, target.description, type(target.runnable).__name__])
        """,
    )
    assert told == ["support", "my_agents:graph", "", "CompiledStateGraph"]


@pytest.mark.parametrize(
    "make",
    [
        "async def make():\n    return graph",
        "def make():\n    return asyncio.run(asyncio.sleep(0, graph))",
        "make = asyncio.run(asyncio.sleep(0, graph))",
    ],
    ids=["async factory", "factory that runs a loop", "import that runs a loop"],
)
def test_loading_may_run_a_loop_while_the_caller_is_in_one(millrace: Millrace, tmp_path: Path, make: str) -> None:
    put(tmp_path / "my_agents.py", graph(imports="import asyncio") + make)
    told = millrace(
        tmp_path,
        """
        async def main():
            return await load("support=my_agents:make").ainvoke({"text": "hi"})
        tell(asyncio.run(main()))
        """,
    )
    assert told == {"text": "served"}


def test_a_file_is_served_by_its_path_with_its_neighbours_and_the_working_folder(
    millrace: Millrace, tmp_path: Path
) -> None:
    put(tmp_path / "far.py", "word = 'far'")
    put(tmp_path / "sub/near.py", "word = 'near'")
    put(tmp_path / "sub/my agents.py", graph("near.word + ' ' + far.word", "import near, far"))
    assert millrace.serves(tmp_path, "support=./sub/my agents.py:graph") == "near far"
    assert millrace.serves(tmp_path, f"support={tmp_path}/sub/my agents.py:graph") == "near far"


def test_a_file_in_a_package_is_served_with_its_relative_imports(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "lib/agents/__init__.py")
    put(tmp_path / "lib/agents/support/__init__.py")
    put(tmp_path / "lib/agents/words.py", "word = 'related'")
    put(tmp_path / "lib/agents/support/graph.py", graph("word", "from ..words import word"))
    assert millrace.serves(tmp_path, "support=lib/agents/support/graph.py:graph") == "related"
    assert millrace.serves(tmp_path / "lib", "support=agents.support.graph:graph") == "related"


def test_a_package_is_served_by_its_init_file(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "agents/__init__.py", "from .inner import graph")
    put(tmp_path / "agents/inner.py", graph())
    assert millrace.serves(tmp_path, "support=./agents/__init__.py:graph") == "served"


def test_a_folder_named_like_a_loaded_library_is_served_by_path(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "langchain_core/__init__.py")
    put(tmp_path / "langchain_core/graph.py", graph())
    assert millrace.serves(tmp_path, "support=./langchain_core/graph.py:graph") == "served"


def test_one_file_with_two_graphs_is_run_once(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "my_agents.py", graph() + "other = graph\n")
    told = millrace(tmp_path, "one, two = load('a=./my_agents.py:graph', 'b=./my_agents.py:other'); tell(one is two)")
    assert told is True


def test_state_classes_of_a_file_survive_pickling(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "my_agents.py", graph() + "class Note(str):\n    pass\nState.Note = Note\nnote = lambda: graph\n")
    told = millrace(
        tmp_path,
        """
        load("support=./my_agents.py:graph")
        module = next(m for name, m in sys.modules.items() if name.startswith("my_agents_"))
        tell(pickle.loads(pickle.dumps(module.Note("kept"))))
        """,
    )
    assert told == "kept"


# What cannot be served


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("my_agents:graph", "it has no name; write NAME=MODULE:ATTR, as in support=my_agents:graph"),
        ("=my_agents:graph", "'' cannot be a name: it becomes part of the URL"),
        ("sup/port=my_agents:graph", "'sup/port' cannot be a name"),
        ("a/b=my_agents:graph", "'a/b' cannot be a name"),
        (f"{'x' * 65}=my_agents:graph", "cannot be a name"),
        ("support=my_agents", "it names no attribute; write MODULE:ATTR or path/to/file.py:ATTR"),
        ("support=my_agents:", "it names no attribute"),
        ("support=:graph", "it names no attribute"),
        ("support=", "it names no attribute"),
        ("support=my_agents:grahp", "my_agents has no attribute 'grahp'; did you mean 'graph'?"),
        ("support=my_agents:make()", "my_agents has no attribute 'make()'; did you mean 'make'?"),
        ("support=my_agents:xyz", "my_agents has no attribute 'xyz'; it has builder, graph"),
        ("support=my_agents:graph.xyz", "my_agents.graph has no attribute 'xyz'"),
        ("support=my_agent:graph", "there is no module my_agent in desk; did you mean 'my_agents'?"),
        ("support=my_agents.deep:graph", "there is no module my_agents.deep in desk"),
        ("support=xyz.abc:graph", "there is no module xyz.abc in desk"),
        ("support=.my_agents:graph", "TypeError: the 'package' argument is required"),
        ("support=./my_agent.py:graph", "there is no file ./my_agent.py; did you mean 'my_agents.py'?"),
        ("support=./sub:graph", "./sub is a folder; name a file in it, as in ./sub/agent.py:graph"),
        ("support=./notes.txt:graph", "notes.txt is no Python file"),
        ("support=my_agents:table", "table is a dict; it must be a compiled LangGraph graph, a Runnable, or a zero-"),
        ("support=my_agents:number", "number is an int; it must be"),
        ("support=my_agents:nothing", "nothing() returned a NoneType; it must be"),
        ("support=my_agents:wrong", "wrong() failed: my_agents.py:17: ValueError: no key; set KEY"),
        ("support=my_agents:wrong_later", "wrong_later() failed: my_agents.py:19: RuntimeError: too late"),
        ("support=my_agents:leaves", "leaves() failed: my_agents.py:21: it called sys.exit(3)"),
        ("support=my_agents:opened", "opened() is a context manager, and Millrace builds a graph once"),
        ("support=my_agents:two", "two() asks for model, tools; a factory takes nothing, or one RunnableConfig"),
        ("support=my_agents:runtime", "runtime() asks for a ServerRuntime, which only LangGraph's server has"),
        ("support=my_agents:loose", "loose does not compile: ValueError: "),
    ],
)
def test_a_bad_target_gets_one_clear_line(millrace: Millrace, tmp_path: Path, spec: str, why: str) -> None:
    folder = tmp_path / "desk"
    bad = """\
        def wrong():
            raise ValueError("no key;\\n  set KEY")
        async def wrong_later():
            raise RuntimeError("too late")
        def leaves():
            raise SystemExit(3)
        import contextlib
        @contextlib.asynccontextmanager
        async def opened():
            yield graph
        def two(model, tools): ...
        def runtime(runtime: "ServerRuntime[dict]"): ...
        def nothing(): ...
        def make(): return graph
        table, number = {}, 3
        loose = StateGraph(State)
        """
    put(folder / "my_agents.py", graph() + dedent(bad))
    put(folder / "notes.txt")
    put(folder / "sub/agent.py")
    message = millrace.refused(folder, spec)
    assert message.startswith(f"{spec}: {why}") or why in message
    assert message.startswith(f"{spec}: ")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import json\n\nprint(graph", "my_agents.py:3: SyntaxError: '(' was never closed"),
        ("x = 1\nx.y\n", "my_agents.py:2: AttributeError: 'int' object has no attribute 'y'"),
        ("import no_such_library", "my_agents.py:1: ModuleNotFoundError: No module named 'no_such_library'"),
        ("import sys\nsys.exit(2)", "my_agents.py:2: it called sys.exit(2); keep that under `if __name__ =="),
        ("import json\njson.loads('{')", "my_agents.py:2: JSONDecodeError: Expecting property name"),
        ("from sub import broken", "sub/broken.py:2: ZeroDivisionError: division by zero"),
        ("raise ValueError", "my_agents.py:1: ValueError"),
        ("from .near import x", "my_agents.py:1: ImportError: attempted relative import with no known parent package"),
    ],
)
@pytest.mark.parametrize("place", ["my_agents", "./my_agents.py"])
def test_what_the_users_module_raises_is_told_with_file_and_line(
    millrace: Millrace, tmp_path: Path, place: str, source: str, why: str
) -> None:
    put(tmp_path / "my_agents.py", source)
    put(tmp_path / "sub/broken.py", "x = 0\n1 / x\n")
    assert millrace.refused(tmp_path, f"a={place}:graph").startswith(f"a={place}:graph: {why}")


def test_the_first_cause_is_kept_and_a_failed_file_can_be_loaded_again(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "my_agents.py", "import os\nos.environ['READY']\n" + graph())
    told = millrace(
        tmp_path,
        """
        try:
            load("a=./my_agents.py:graph")
        except TargetError as error:
            cause = repr(error.__cause__)
        os.environ["READY"] = "yes"
        tell([cause, load("a=./my_agents.py:graph").invoke({"text": "hi"})["text"]])
        """,
    )
    assert told == ["KeyError('READY')", "served"]


def test_a_long_message_is_cut(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "my_agents.py", "raise ValueError('word ' * 1000)")
    assert len(millrace.refused(tmp_path, "a=my_agents:graph")) < 500


# Names that Millrace has too


@pytest.mark.parametrize("form", ["file", "package", "folder"])
@pytest.mark.parametrize("name", ["app", "chains", "tools"])
def test_the_users_own_module_wins_and_millrace_still_works(
    millrace: Millrace, tmp_path: Path, name: str, form: str
) -> None:
    where = {"file": f"{name}.py", "package": f"{name}/__init__.py", "folder": f"{name}/words.py"}[form]
    module = f"{name}.words" if form == "folder" else name
    put(tmp_path / where, "word = 'mine'")
    # The second import is lazy: it happens in a run, long after the target was loaded.
    put(
        tmp_path / "my_agents.py",
        graph(f"word + __import__({module!r}, fromlist=['*']).word", f"from {module} import word"),
    )
    told = millrace(
        tmp_path,
        f"""
        import app.events.codec, app.events.event, tools.calculator
        codec, event, calculator = app.events.codec, app.events.event, tools.calculator
        said = [load(spec).invoke({{"text": "hi"}})["text"] for spec in ("a=my_agents:graph", "b=./my_agents.py:graph")]
        sums = asyncio.run(calculator.build_calculator().ainvoke({{"expression": "6 * 7"}}))
        token = event.Token(ts=1, message_id="m", text="still typed")
        typed = codec.decode("token", codec.encode(token)) == token
        again = refused("c=my_agents:nothing"), refused("d"), refused(config="nowhere.json")
        tell([said, sums, typed, sorted(n for n in sys.modules if n.split(".")[0] == {name!r})])
        """,
    )
    assert told[:3] == [["minemine", "minemine"], told[1], True]
    assert "42" in told[1]
    assert told[3] == ([name, module] if form == "folder" else [name])


@pytest.mark.parametrize(
    "spec",
    ["a=tools:graph", "a=./tools.py:graph", "a=app.graph:graph", "a=./app/graph.py:graph", "a=chains.sub.graph:graph"],
)
def test_a_target_may_itself_have_millraces_name(millrace: Millrace, tmp_path: Path, spec: str) -> None:
    put(tmp_path / "tools.py", graph())
    put(tmp_path / "app/__init__.py")
    put(tmp_path / "app/words.py", "word = 'served'")
    put(tmp_path / "app/graph.py", graph("word", "from .words import word"))
    put(tmp_path / "chains/sub/graph.py", graph())
    assert millrace.serves(tmp_path, spec) == "served"


@pytest.mark.parametrize("beside", ["other.py", "tools/README.md"])
def test_millraces_own_tools_are_there_for_a_module_whose_folder_has_none(
    millrace: Millrace, tmp_path: Path, beside: str
) -> None:
    put(tmp_path / beside)
    put(tmp_path / "my_agents.py", graph("tools.calculator.__name__", "import tools.calculator"))
    before = "own = set(sys.modules); load('a=my_agents:graph'); tell(own <= set(sys.modules))"
    assert millrace(tmp_path, before) is True
    assert millrace.serves(tmp_path, "a=my_agents:graph") == "tools.calculator"


def test_millraces_own_folder_sets_nothing_aside(millrace: Millrace) -> None:
    told = millrace(ROOT, "own = set(sys.modules); refused('a=chains:graph'); tell(own <= set(sys.modules))")
    assert told is True


def test_two_agents_whose_folders_hold_the_same_name_are_refused_not_mixed(millrace: Millrace, tmp_path: Path) -> None:
    for agent in ("one", "two"):
        put(tmp_path / agent / "prompts.py", f"word = {agent!r}")
        put(tmp_path / agent / "agent.py", graph("prompts.word", "import prompts"))
    message = millrace.refused(tmp_path, "a=./one/agent.py:graph", "b=./two/agent.py:graph")
    assert message == (
        "b=./two/agent.py:graph: its module 'prompts' (two/prompts.py) collides with the 'prompts' that is already "
        "loaded, one/prompts.py; rename one, or serve them from two processes"
    )


def test_a_module_named_like_a_loaded_library_is_refused(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "json.py", graph())
    assert "a=json:graph: its module 'json' (json.py) collides with" in millrace.refused(tmp_path, "a=json:graph")
    put(tmp_path / "time.py", graph())
    assert "its module 'time' (time.py) collides with" in millrace.refused(tmp_path, "a=time:graph")


def test_two_files_of_one_name_are_two_modules(millrace: Millrace, tmp_path: Path) -> None:
    put(tmp_path / "one/agent.py", graph("'one'"))
    put(tmp_path / "two/agent.py", graph("'two'"))
    put(tmp_path / "two/__main__.py")
    told = millrace(
        tmp_path,
        """
        sys.modules["__main__"].__file__ = "/usr/bin/millrace"
        one, two = load("a=./one/agent.py:graph", "b=./two/agent.py:graph")
        tell([one.invoke({"text": "hi"})["text"], two.invoke({"text": "hi"})["text"]])
        """,
    )
    assert told == ["one", "two"]


@pytest.mark.parametrize("room", ["app", "chains", "tools"])
def test_no_module_of_millrace_looks_another_one_up_once_it_is_imported(room: str) -> None:
    """After a name was set aside such a look-up would find the user's; the command line imports before it loads."""
    for file in (ROOT / room).rglob("*.py"):
        tree = ast.parse(file.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        late = {name for function in functions for name in imported(function)} if file.name != "cli.py" else set()
        found = late & {"", "app", "chains", "tools"} | imported(tree) & {"importlib.resources", "pkgutil"}
        assert not found, f"{file.relative_to(ROOT)} imports {found}"


def imported(tree: ast.AST) -> set[str]:
    """Give every module an import names, by its first part too; a relative one as an empty string."""
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    relative = {"" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    return {*names, *(name.partition(".")[0] for name in names), *relative}


# An existing LangGraph project


def project(folder: Path, **config: Any) -> Path:
    config = {"graphs": {"support": "./agent.py:graph"}, "dependencies": ["."], **config}
    put(folder / "langgraph.json", json.dumps(config))
    return folder


def served(millrace: Millrace, folder: Path, config: str = "langgraph.json") -> Any:
    """Give names, answers and notes of a project that is loaded from the folder."""
    return millrace(
        folder,
        f"""
        targets, notes = load_config(Path({config!r}))
        tell([{{t.name: t.runnable.invoke({{"text": "hi"}})["text"] for t in targets}}, notes])
        """,
    )


def test_a_project_with_a_src_layout_and_all_forms_of_graphs_is_served(millrace: Millrace, tmp_path: Path) -> None:
    graphs = {
        "support": "./src/desk/graph.py:graph",
        "by-module": "desk.graph:builder",
        "by_factory": {"path": "./src/desk/graph.py:make", "description": "Made when asked."},
        "loose": {"path": "loose.py:graph", "description": None},
    }
    project(tmp_path / "proj", graphs=graphs, python_version="3.12", node_version="20", pip_config_file="x.conf")
    put(tmp_path / "proj/pyproject.toml")
    put(tmp_path / "proj/loose.py", graph("'loose'"))
    put(tmp_path / "proj/src/desk/__init__.py")
    put(tmp_path / "proj/src/desk/state.py", "word = 'state'")
    make = "async def make(config):\n    assert config['configurable'] == {}\n    return builder\n"
    imports = "from .state import word; from desk.state import word as same"
    put(tmp_path / "proj/src/desk/graph.py", graph("word + same", imports) + make)
    answers = {"support": "statestate", "by-module": "statestate", "by_factory": "statestate", "loose": "loose"}
    assert served(millrace, tmp_path, "proj/langgraph.json") == [answers, []]
    assert served(millrace, tmp_path / "proj") == [answers, []]
    described = "tell([t.description for t in load_config(Path('langgraph.json'))[0]])"
    assert millrace(tmp_path / "proj", described) == ["", "", "Made when asked.", ""]


def test_local_dependencies_are_importable_as_if_they_were_installed(millrace: Millrace, tmp_path: Path) -> None:
    here = project(tmp_path / "apps/agent", dependencies=[".", "../../libs/shared", "../../libs/common", "langgraph"])
    put(tmp_path / "libs/shared/setup.py")
    put(tmp_path / "libs/shared/src/shared/__init__.py", "word = 'shared'")
    put(tmp_path / "libs/common/__init__.py", "word = 'common'")
    put(here / "agent.py", graph("shared.word + common.word", "import shared, common"))
    assert served(millrace, here) == [{"support": "sharedcommon"}, []]


@pytest.mark.parametrize("imports", ["from src.desk.state import word", "from desk.state import word"])
def test_a_project_without_a_pyproject_is_served_either_way_it_names_itself(
    millrace: Millrace, tmp_path: Path, imports: str
) -> None:
    project(tmp_path, graphs={"support": "./src/desk/graph.py:graph"})
    put(tmp_path / "src/desk/__init__.py")
    put(tmp_path / "src/desk/state.py", "word = 'state'")
    put(tmp_path / "src/desk/graph.py", graph("word", imports))
    assert served(millrace, tmp_path) == [{"support": "state"}, []]


def test_env_is_set_before_the_import_and_the_real_environment_wins(millrace: Millrace, tmp_path: Path) -> None:
    says = "' '.join(os.environ[key] for key in ('HOME', 'DESK_A', 'DESK_B'))"
    put(tmp_path / "agent.py", graph("word", f"import os; word = {says}"))
    put(tmp_path / ".env", "# the desk\nexport DESK_A='a b'\nDESK_B=${DESK_A}!\nHOME=/wrong\nDESK_EMPTY\n")
    project(tmp_path, env=".env")
    home = millrace(tmp_path, "tell(os.environ['HOME'])")
    assert served(millrace, tmp_path) == [{"support": f"{home} a b a b!"}, []]
    project(tmp_path, env={"DESK_A": "x", "DESK_B": 3, "HOME": "/wrong"})
    assert served(millrace, tmp_path) == [{"support": f"{home} x 3"}, []]


def test_what_is_not_honoured_is_noted(millrace: Millrace, tmp_path: Path) -> None:
    graphs = {"support": "./agent.py:graph", "site": "./src/graph.ts:graph"}
    put(tmp_path / "agent.py", graph())
    project(
        tmp_path, graphs=graphs, auth={"path": "./auth.py:auth"}, store={}, http={"app": "x"}, env=".env", ui={"a": "b"}
    )
    assert served(millrace, tmp_path) == [
        {"support": "served"},
        [
            "auth is ignored: Millrace decides who may call it",
            "http is ignored: routes and CORS are Millrace's own",
            "env is ignored: there is no file .env",
            "graph site is left out: ./src/graph.ts:graph is JavaScript, and Millrace serves Python",
        ],
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            '{\n  "graphs": {},,\n}',
            "line 2, column 16: Expecting property name enclosed in double quotes; it must be plain",
        ),
        ('{"graphs": {} // mine\n}', "line 1, column 15: Expecting ',' delimiter"),
        ("", "line 1, column 1: Expecting value"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "Object missing required field `graphs`"),
        ('{"graphs": {}}', '"graphs" is empty; it maps a name to "./file.py:attribute"'),
        ('{"graphs": {"a": 3}}', "Expected `str | object`, got `int` - at `$.graphs[...]`"),
        ('{"graphs": {"a": {"file": "x"}}}', "Object missing required field `path` - at `$.graphs[...]`"),
        ('{"graphs": {"a": "./agent.py:graph"}, "env": ["A"]}', "Expected `str | object`, got `array` - at `$.env`"),
        ('{"graphs": {"a": "./agent.py:graph"}, "dependencies": ["./lib"]}', "dependencies: there is no folder ./lib"),
        ('{"graphs": {"a": "./agent.py:graph"}, "env": "bad.env"}', "env: bad.env cannot be read: UnicodeDecodeError"),
        ('{"graphs": {"My Agent": "./agent.py:graph"}}', "graphs.My Agent: 'My Agent' cannot be a name"),
        ('{"graphs": {"a": "./agent.py"}}', "graphs.a: it names no attribute"),
        ('{"graphs": {"a": "./agnt.py:graph"}}', "graphs.a: there is no file ./agnt.py; did you mean 'agent.py'?"),
        ('{"graphs": {"a": "no.where:graph"}}', "graphs.a: there is no module no.where in desk"),
        ('{"graphs": {"a": "./agent.py:grap"}}', "graphs.a: ./agent.py has no attribute 'grap'; did you mean 'graph'?"),
    ],
)
def test_a_bad_config_gets_one_clear_line(millrace: Millrace, tmp_path: Path, text: str, why: str) -> None:
    put(tmp_path / "desk/langgraph.json", text)
    put(tmp_path / "desk/agent.py", graph())
    (tmp_path / "desk/bad.env").write_bytes(b"A=\xff\n")
    assert millrace(tmp_path, "tell(refused(config='desk/langgraph.json'))").startswith(f"desk/langgraph.json: {why}")


def test_a_config_that_cannot_be_read_is_named(millrace: Millrace, tmp_path: Path) -> None:
    told = "tell([refused(config='none.json'), refused(config='.')])"
    put(tmp_path / "latin.json").write_bytes(b'{"graphs": "\xe9"}')
    assert millrace(tmp_path, told) == [
        "none.json: it cannot be read: No such file or directory",
        ".: it cannot be read: Is a directory",
    ]
    assert millrace(tmp_path, "tell(refused(config='latin.json'))") == "latin.json: it is not UTF-8 text"


def test_a_failed_import_names_the_dependencies_that_are_not_installed(millrace: Millrace, tmp_path: Path) -> None:
    dependencies = [".", "langgraph", "no-such-library>=2", "no_such_either[x]", "git+https://example.org/x.git"]
    project(tmp_path, dependencies=dependencies)
    put(tmp_path / "agent.py", "import no_such_library")
    assert millrace(tmp_path, "tell(refused(config='langgraph.json'))") == (
        "langgraph.json: graphs.support: agent.py:1: ModuleNotFoundError: No module named 'no_such_library'; "
        "not installed: no-such-library>=2, no_such_either[x] (pip install them)"
    )
    put(tmp_path / "agent.py", "1 / 0")
    assert "not installed" not in millrace(tmp_path, "tell(refused(config='langgraph.json'))")


def test_a_project_with_all_of_millraces_names_is_served_as_it_is(millrace: Millrace) -> None:
    """The project has a ``tools.py``, an ``app`` package and a ``chains`` folder, and imports across them."""
    told = millrace(
        ROOT / "tests/projects",
        """
        targets, notes = load_config(Path("langgraph_app/langgraph.json"))
        support, translator, summary = targets
        tell({
            "names": [target.name for target in targets],
            "descriptions": [target.description for target in targets],
            "notes": notes,
            "nodes": sorted(support.runnable.get_graph().nodes),
            "summary": summary.runnable.invoke({"text": "one two three four"})["summary"],
            "desk": os.environ["SUPPORT_DESK"],
            "tools": Path(sys.modules["tools"].__file__).parent.name,
        })
        """,
    )
    assert told == {
        "names": ["support", "translator", "summary"],
        "descriptions": ["", "Translates what it is sent.", ""],
        "notes": [],
        "nodes": ["__end__", "__start__", "model", "tools"],
        "summary": "one two three …",
        "desk": "the night desk",
        "tools": "langgraph_app",
    }
