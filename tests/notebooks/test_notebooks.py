"""Every notebook runs from top to bottom against a live server, and is committed without what a run leaves in it.

The kernel is the ``ipykernel`` of the Python that runs the tests, with nothing of the user's own: no kernel
specification, no start-up file, no key, no model. It is told where the server and its provider are by its own
environment; that of the tests is left as it is.
"""

import os
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from serving import Served

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CELL_TIMEOUT_S = 60

every_notebook = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    """The notebook in the current format; one that is not valid, or lacks ids, raises."""
    notebook: nbformat.NotebookNode = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    return notebook


def prose(path: Path) -> str:
    """What stands between the cells of code."""
    return "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")


def kernel(folder: Path) -> AsyncKernelManager:
    """With no folder to look in, ``python3`` is this interpreter's own; its files go to ``folder``."""
    specs = KernelSpecManager(kernel_dirs=[])
    return AsyncKernelManager(
        kernel_name="python3", kernel_spec_manager=specs, connection_file=str(folder / "kernel.json")
    )


def environment(served: Served, folder: Path) -> dict[str, str]:
    """The tests' own without the settings of whoever runs them, and with what a notebook asks for."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MILLRACE_", "OPENAI_"))}
    return {
        **ours,
        "MILLRACE_URL": served.url,
        "OPENAI_BASE_URL": served.simulator.base_url,
        "IPYTHONDIR": str(folder / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


@every_notebook
async def test_a_notebook_runs_and_shows_a_table_and_a_picture(path: Path, served: Served, tmp_path: Path) -> None:
    notebook = read(path)
    client = NotebookClient(
        notebook, km=kernel(tmp_path), timeout=CELL_TIMEOUT_S, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    await client.async_execute(cleanup_kc=True, env=environment(served, tmp_path))
    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert any("image/png" in data for data in shown)
    assert any("<table" in data.get("text/html", "") for data in shown)


@every_notebook
def test_a_notebook_is_committed_valid_and_without_the_traces_of_a_run(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    for cell in code:
        assert cell.outputs == [], f"cell {cell.id} has outputs: clear them before the commit"
        assert cell.execution_count is None, f"cell {cell.id} has been counted: clear the outputs before the commit"


def test_the_notebooks_are_a_course_in_which_each_leads_to_the_next_and_back() -> None:
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert len(paths) > 1
    for one, following in pairwise(paths):
        assert f"({following.name})" in prose(one)
        assert f"({one.name})" in prose(following)
