"""Parts shared by train.py and evaluate.py: resolvers for conf/, --help, and user errors without a traceback.

Imported before Hydra runs, so it must stay light: only the tasks import torch, and `--help` returns at once.
"""

import atexit
import difflib
import errno
import functools
import logging
import os
import re
import shlex
import sys
import tempfile
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sr_lightning.configs import CONF, command
from sr_lightning.errors import InputError, LostProcessError, find_input_error
from sr_lightning.runs.fingerprint import cell_name
from sr_lightning.runs.folder import RunFolder, remove_failed_start
from sr_lightning.runs.result import record_failure
from sr_lightning.runs.saved_config import rename_keys, upgrade_overrides
from sr_lightning.runs.targets import foreign_packages
from sr_lightning.sweeps.agents import place_run
from sr_lightning.sweeps.devices import visible_devices
from sr_lightning.sweeps.invocation import relative
from sr_lightning.sweeps.processes import (
    IN_USE,
    exit_with_first_process,
    exit_with_parent,
    has_parent,
    is_cell,
    is_further_process,
    process_rank,
    tell_caller,
)
from sr_lightning.sweeps.run import CellFailed, hydra_value, in_sweep, quoted, unquoted
from sr_lightning.utils.cores import bound_spinning
from sr_lightning.utils.held_folder import FolderInUseError
from sr_lightning.utils.messages import escape_messages
from sr_lightning.utils.signals import Interrupted, handle_signals

log = logging.getLogger(__name__)
PATHS = ("run_dir", "hydra.run.dir", "hydra.sweep.dir", "cache_dir", "data_root")  # that need not exist
composing = threading.Lock()  # of Hydra's state, of which a process has one

OmegaConf.register_new_resolver("if_none", lambda value, then, otherwise: then if value is None else otherwise)
OmegaConf.register_new_resolver("product", lambda a, b: a * b)
OmegaConf.register_new_resolver(
    "if_sweep", lambda mode, then, otherwise: then if mode == RunMode.MULTIRUN else otherwise
)
OmegaConf.register_new_resolver("kept", lambda dry_run, directory: scratch() if dry_run else directory)
OmegaConf.register_new_resolver("cell_name", lambda _root_: cell_name(_root_))
OmegaConf.register_new_resolver("beside_runs", lambda runs, otherwise: leaderboard_dir(runs) or otherwise)
OmegaConf.register_new_resolver("num_devices", lambda: max(1, len(visible_devices())))


@functools.cache
def scratch() -> str:
    """Return a temporary directory that is deleted when this process exits, so that a dry run leaves no files."""
    folder = tempfile.TemporaryDirectory(prefix="sr_lightning_")
    atexit.register(folder.cleanup)
    return folder.name


def leaderboard_dir(runs: Any) -> str | None:
    """Return the directory of the leaderboard of a sweep; None if `runs` is not the writable folder of one sweep."""
    folders = [Path(str(path)).expanduser() for path in (runs if isinstance(runs, ListConfig) else [runs]) if path]
    is_one = len(folders) == 1 and os.path.lexists(folders[0] / ".sweep") and os.access(folders[0], os.W_OK)
    return str(folders[0] / "leaderboard") if is_one else None


def prepare_command(about: str, name: str) -> None:
    """Prepare the process, and replace earlier names of keys; print help and exit if `-h` or `--help` is given.

    OpenMP's spinning is bounded, and signals are handled. The help has purpose and examples, config groups, and
    settings with comments. Hydra's own help takes two seconds and omits the comments.

    Args:
        about: The command's docstring: purpose and examples.
        name: "train" or "evaluate", which is also the name of its config.
    """
    bound_spinning()
    escape_messages()
    handle_signals()
    try:
        sys.argv[1:] = name_directory(for_hydra(sys.argv[1:]))
        if name == "train":
            sys.argv[1:] = place_run(sys.argv[1:])
        check_keys(sys.argv[1:], name)
        check_resume(sys.argv[1:])
    except OSError as error:  # a name that is too long, no permission
        sys.exit(f"error: {error.filename}: {error.strerror}")
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    defaults, _, settings = text.partition("defaults:\n")[2].partition("\n\n")
    groups = [line.strip(" -").partition(":")[0] for line in defaults.splitlines() if ":" in line]
    width = max(map(len, groups)) + 2
    lines = []
    for group in groups:
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")
        lines += textwrap.wrap(f"{group:{width}}{' '.join(options)}", 110, subsequent_indent=" " * width)
    groups = textwrap.indent("\n".join(lines), "  ")
    run = command(f"{name}.py")
    about = about.strip().replace(f"python {name}.py", run)
    # Hydra completes scripts only, not the commands of an installed package
    keys = f'\nShell completion of groups, options and keys: eval "$({run} -sc install=bash)"' if " " in run else ""
    settings = textwrap.indent(settings.partition("\nhydra:")[0].strip(), "  ")
    print(
        f"usage: {run} [GROUP=OPTION ...] [KEY=VALUE ...]\n\n{about}\n\n"
        f"groups (each file in conf/GROUP/ is an option):\n{groups}\n\n"
        f"settings (conf/{name}.yaml) and their defaults; options have their own, such as model.optimizer.lr:\n"
        f"{settings}\n\n"
        "To print the resulting settings, add --cfg job --resolve. Hydra's own flags: --hydra-help."
        f"{keys}"
    )
    sys.exit()


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """Replace what users may write by what Hydra reads: earlier names of keys, folders, last checkpoints, addresses.

    A flag of a sweep among the overrides, of which Hydra reads one part only, becomes the first argument.

    >>> for_hydra(["model=espcn", "-m", "seed=1,2"])
    ['-m', 'model=espcn', 'seed=1,2']
    """
    arguments = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))
    arguments = [name_deletion(argument) for argument in arguments]
    upgraded = [part for argument in upgrade_overrides(arguments) for part in name_folder(argument)]
    return [quote_path(quote_address(name_option(name_run(argument)))) for argument in upgraded]


def compose_config(name: str, arguments: Sequence[str]) -> DictConfig:
    """Compose a config from arguments, in this process, also in a thread or within another program of Hydra's.

    Args:
        name: "train" or "evaluate".
        arguments: As on the command line.

    Raises:
        InputError: Hydra does not know a key or an option, or cannot read an argument.
    """
    try:
        with composing, _hydra_of_its_own(), initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(name, for_hydra(arguments))
    except MissingConfigException as error:
        group, _, option = (error.missing_cfg_file or "").partition("/")
        options = sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")
        other = "neither a folder nor" if group == "data" else "not"
        raise InputError(f"{group}={option} is {other} one of {', '.join(options)}") from None
    except (HydraException, OmegaConfBaseException) as error:
        text = str(error).partition("\nConfig search path")[0]
        if key := re.match(r"Could not override '([^']+)'", text):
            text = no_setting(key[1], name)
        raise InputError(text) from None


@contextmanager
def _hydra_of_its_own() -> Iterator[None]:
    """Set the state of the caller's Hydra aside."""
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = outer  # Hydra has made a new instance


def check_keys(arguments: Sequence[str], name: str) -> None:
    """Exit if the first part of a key is in no config: Hydra takes six lines, and proposes to add it."""
    if any(re.match("-c[dnp]|--config-(dir|name|path)|-sc|--shell", argument) for argument in arguments):
        return  # a config of the user may have any key; completion has words of its own
    keys = [key[1] for argument in arguments if (key := re.match(r"(\w+)[=./@]", argument))]
    unknown = set(keys) - {"hydra", *(path.stem for path in CONF.iterdir())}
    for file in (CONF / f"{name}.yaml", *CONF.glob("*/*.yaml")):
        if unknown:
            unknown -= set(re.findall(r"^(\w+):", file.read_text(encoding="utf-8"), re.MULTILINE))
    if unknown:
        sys.exit(f"error: {no_setting(next(key for key in keys if key in unknown), name)}")


def no_setting(key: str, name: str) -> str:
    """Return the message for a key that no config has, with the nearest one."""
    close = difflib.get_close_matches(key, [path.stem for path in CONF.iterdir()] + top_level_keys(name), 1)
    return f"there is no setting {key}{f'; did you mean {close[0]}?' if close else ''}"


def top_level_keys(name: str) -> list[str]:
    """Return the keys of conf/NAME.yaml."""
    return [str(key) for key in OmegaConf.load(CONF / f"{name}.yaml")]


def name_run(argument: str) -> str:
    """Replace the last checkpoint of a run in `resume=` by the run's directory; return other arguments unchanged."""
    path = Path(unquoted(argument.removeprefix("resume=")))
    is_last = argument.startswith("resume=") and path.parts[-2:] == ("checkpoints", "last.ckpt")
    return f"resume={hydra_value(str(path.parents[1]))}" if is_last else argument


def name_directory(arguments: Sequence[str]) -> list[str]:
    """Replace `run_dir=` by Hydra's key, so that Hydra writes there as well; exit if it names no directory of one run.

    >>> name_directory(["model=edsr", "run_dir=mine"])
    ['model=edsr', 'hydra.run.dir=mine']
    """
    named = []
    for argument in arguments:
        key, is_set, value = argument.partition("=")
        if not is_set or key.lstrip("+") not in ("run_dir", "hydra.run.dir"):
            named.append(argument)
            continue
        if unquoted(value) in ("", "null", "???"):
            sys.exit(f"error: {argument} names no directory: give one, or leave it out for outputs/NAME/TIME")
        if key.lstrip("+") == "run_dir" and {"-m", "--multirun"} & set(arguments):
            sys.exit(f"error: {argument} is the directory of one run: name that of a sweep by hydra.sweep.dir={value}")
        named.append(f"hydra.run.dir={value}")
    return named


def name_folder(argument: str) -> list[str]:
    """Replace a folder of images as `data=` by the option `folder`; return other arguments unchanged.

    >>> name_folder("data=/"), name_folder("data=t91")
    (['data=folder', 'data.hr=/'], ['data=t91'])
    """
    key, _, value = argument.partition("=")
    if key != "data":
        return [argument]
    path = unquoted(value)
    is_option = path in [option.stem for option in (CONF / "data").glob("*.yaml")]
    is_folder = path and not is_option and Path(path).expanduser().is_dir()
    return ["data=folder", f"data.hr={value}"] if is_folder else [argument]


def name_deletion(argument: str) -> str:
    """Replace the deletion of a group or a top-level setting by null, which is checked; return others unchanged.

    >>> name_deletion("~max_steps"), name_deletion("~model=espcn"), name_deletion("~model.scheduler")
    ('max_steps=null', 'model=null', '~model.scheduler')
    """
    deletion = re.fullmatch(r"~(\w+)(=.*)?", argument)
    return f"{deletion[1]}=null" if deletion else argument


def name_option(argument: str) -> str:
    """Quote a number, true, false or null as option of a group: Hydra then names the options instead of ValueError.

    Null, as default of a group, leaves it out, and no logger is that of metrics.csv alone.

    >>> name_option("gan=true"), name_option("logger=null"), name_option("model=null"), name_option("seed=3")
    ("gan='true'", '~logger', "model='null'", 'seed=3')
    """
    group, _, value = argument.partition("=")
    if not group or not (CONF / group).is_dir():
        return argument
    defaults = (CONF / "train.yaml").read_text(encoding="utf-8")
    if value == "null" and (group == "logger" or f"- {group}: null\n" in defaults):
        return f"~{group}"
    odd = re.fullmatch(r"true|false|null|[-+.\d]+", value, re.IGNORECASE)
    return f"{group}='{value}'" if odd else argument


def quote_address(argument: str) -> str:
    """Quote addresses, whose `#` and `=` Hydra does not read; return arguments with quotes unchanged.

    >>> quote_address("ckpt=https://host/x2.pth#sha256=00ff"), quote_address("ckpt=best.ckpt")
    ("ckpt='https://host/x2.pth#sha256=00ff'", 'ckpt=best.ckpt')
    """
    return argument if re.search("['\"]", argument) else re.sub(r"(?<=[=\[,])(https?://[^\s,\]}]+)", r"'\1'", argument)


def quote_path(argument: str) -> str:
    """Quote a path with characters that Hydra does not read, such as accents; return other arguments unchanged.

    >>> quote_path("run_dir=läufe/1"), quote_path("name=läufe"), quote_path("data.hr='läufe'")
    ("run_dir='läufe/1'", 'name=läufe', "data.hr='läufe'")
    """
    key, _, value = argument.partition("=")
    is_plain = re.fullmatch(r"[\w\s./~+%@:?*-]*", value, re.ASCII) or re.search(r"['\"\[{,$]", value)
    is_path = key.lstrip("+") in PATHS or (not is_plain and Path(value).expanduser().exists())
    return f"{key}={quoted(value)}" if is_path and not is_plain else argument


def check_resume(arguments: Sequence[str]) -> None:
    """Exit if `resume=` names no run, before Hydra creates that directory; a further process tells the first one."""
    try:
        if process_rank() > 0:
            return
    except InputError as error:
        sys.exit(f"error: {error}")
    for value in (argument.removeprefix("resume=") for argument in arguments if argument.startswith("resume=")):
        path = unquoted(value)
        if path not in ("null", "???") and "$" not in path and not RunFolder(path).config.is_file():
            sys.exit(f"error: resume={path} is not the directory of a run: it has no config.yaml")


def task(function: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wrap a task so that errors are logged, and an `InputError` ends the process without a traceback."""

    @functools.wraps(function)
    def wrapper(cfg: DictConfig) -> Any:
        exit_with_parent() if has_parent() else exit_with_first_process()
        tell_caller(run_dir=cfg.run_dir)
        try:
            rename_keys(cfg)
            return function(cfg)
        except CellFailed:
            raise
        except Interrupted as stop:
            if process_rank() > 0:
                sys.exit(0)  # the first process reports; Lightning would kill it for another exit code of this one
            if is_cell() or not in_sweep():
                log.info("%s", how_to_go_on(cfg, stop))
                if not is_cell():  # the next command of the sweep may just use its directory: the job removes it
                    remove_failed_start(cfg.run_dir)
            raise
        except Exception as error:
            input_error = find_input_error(error) or constructor_error(error) or path_error(error)
            if input_error is None:
                log.exception("failed")
            else:
                lost = isinstance(input_error, LostProcessError)
                log.error("error: %s", how_to_go_on(cfg, input_error) if lost else input_error)
                tell_caller(run_dir=cfg.run_dir, error=str(input_error))
            in_use = isinstance(input_error, FolderInUseError)
            if is_cell() and not in_use:
                record_failure(cfg, str(input_error or f"{type(error).__name__}: {error}"))
            if is_cell() or (input_error is not None and not in_sweep()):  # in a sweep, the other jobs continue
                if not (is_further_process() or is_cell()):
                    remove_failed_start(cfg.run_dir)
                sys.exit(IN_USE if is_cell() and in_use else 1)
            raise

    return wrapper


def constructor_error(error: BaseException | None) -> InputError | None:
    """Return the refusal of settings by a constructor that a config names, if that caused an exception.

    None for an exception within the code of others, whose traceback they need.
    """
    while error is not None and not isinstance(error, InstantiationException):
        error = error.__cause__ or error.__context__
    cause = None if error is None else error.__cause__
    if not isinstance(cause, ValueError | TypeError | ModuleNotFoundError):
        return None
    raised_by = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(cause.__traceback__)][-1]
    if raised_by.partition(".")[0] not in ("hydra", "sr_lightning", "torch", "pytorch_lightning", "lightning_fabric"):
        return None
    key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else "the settings"
    return InputError(f"{key}: {cause}")


def path_error(error: BaseException | None) -> InputError | None:
    """Return what is wrong with a path, too long a name or no permission, if that caused an exception."""
    while error is not None and getattr(error, "errno", None) not in (errno.ENAMETOOLONG, errno.EACCES):
        error = error.__cause__ or error.__context__
    return InputError(f"{error.filename}: {error.strerror}") if isinstance(error, OSError) else None


def how_to_go_on(cfg: DictConfig, stop: Interrupted | LostProcessError) -> str:
    """Describe what has ended the run, and how to go on."""
    if RunFolder(cfg.run_dir).last.is_file() and not is_cell():
        return f"{stop}. To go on: {command(sys.argv[0])} {resume_override(cfg)}"
    return str(stop)


def resume_override(cfg: DictConfig) -> str:
    """Return the arguments that resume a run, quoted for Hydra and for a shell where necessary."""
    words = [f"resume={hydra_value(str(relative(Path(cfg.run_dir))))}", *allow_override(cfg)]
    return " ".join(map(shlex.quote, words))


def allow_override(cfg: DictConfig) -> list[str]:
    """Return the argument that allows the packages of classes that a run has beside this project's, if it has any."""
    packages = foreign_packages(OmegaConf.to_container(cfg))
    return [f"allow=[{','.join(packages)}]"] if packages else []
