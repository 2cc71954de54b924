"""The command ``millrace``: serve; see the settings and the runs, end one; talk to an agent; look for faults.

The commands that speak to a server are there at once. Those that have one in them take two seconds of imports, and are
imported when they are named or listed.
"""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_group
from typing_extensions import override

from app import remote
from app.doctor.command import doctor
from app.terminal import chat

SERVER, ITS_COMMANDS = "app.serve", ("serve", "settings")


class Commands(TyperGroup):
    """All of them, the server's first. (Typer's own kind of context and command has no public name.)"""

    @override
    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return [*ITS_COMMANDS, *super().list_commands(ctx)]

    @override
    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The one of this name, if there is one."""
        if cmd_name in ITS_COMMANDS:
            return get_group(import_module(SERVER).commands).commands[cmd_name]
        return super().get_command(ctx, cmd_name)


cli = typer.Typer(
    cls=Commands,
    help="Serves LangGraph agents as streams that survive production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cli.command()(chat)
cli.command()(doctor)
cli.command()(remote.runs)
cli.command()(remote.cancel)


def main() -> None:
    """The console script."""
    cli()


if __name__ == "__main__":
    main()
