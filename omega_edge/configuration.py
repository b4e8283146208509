"""Where each option comes from: flags > OMEGA_* environment > TOML file > defaults.

An option is a field of BrainConfig. In the environment it is OMEGA_ and its name in capitals
(OMEGA_STORAGE_PATH), in the file a key of the top level (storage_path = "..."). A name that no option has, in
either place, is an error, and so is a value of the wrong kind. An empty variable counts as not set; "none" stands for
no value where an option may do without (model_path).

One file is read: the one named by --config or OMEGA_CONFIG, else the first that exists of
$XDG_CONFIG_HOME/omega-edge/config.toml (~/.config when that is not set) and /etc/omega-edge/config.toml.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omega_edge.cli_codes import DEBUG_VARIABLE
from omega_edge.config import BrainConfig
from omega_edge.errors import ConfigError

VARIABLE_PREFIX = "OMEGA_"
FILE_VARIABLE = "OMEGA_CONFIG"
DEMONSTRATION_BUNDLE = "movietweetings-70k.bundle"
NOTHING = "none"
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True)
class Setting:
    """One option in force and where its value came from, in words ("flag --storage", "default")."""

    name: str
    value: object
    origin: str


def source_checkout() -> Path | None:
    """The root of the source tree that this package runs from, or None when it is installed without one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "toolchain" / "build_bundle.py").is_file() else None


def _home(environment: Mapping[str, str], variable: str, fallback: str) -> Path | None:
    """A folder of the user, or None for a user without a home, as a service may be: no HOME and no passwd entry."""
    named = environment.get(variable, "")
    if named:
        return Path(named)
    try:
        return Path("~").expanduser() / fallback
    except RuntimeError:
        return None


def _expanded(name: str, text: str, origin: str) -> Path:
    """The path with ~ and ~user put in full."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{name} ({origin}): expected a path, got {text!r}: no such user, or one without a home") from None


def default_paths(environment: Mapping[str, str]) -> dict[str, Path]:
    """Paths that hold where nothing else is said: the user's state directory and a source tree's build directory."""
    state = _home(environment, "XDG_STATE_HOME", ".local/state")
    paths = {} if state is None else {"storage_path": state / "omega-edge"}
    root = source_checkout()
    if root is not None:
        paths["catalog_path"] = root / "build" / DEMONSTRATION_BUNDLE
        if (root / "build" / "model").is_dir():
            paths["model_path"] = root / "build" / "model"
    return paths


def _find_file(named: Path | None, environment: Mapping[str, str]) -> Path | None:
    if named is not None:
        return named
    if environment.get(FILE_VARIABLE):
        return Path(environment[FILE_VARIABLE])
    for directory in (_home(environment, "XDG_CONFIG_HOME", ".config"), Path("/etc")):
        if directory is None:
            continue
        candidate = directory / "omega-edge" / "config.toml"
        # False too in a folder that this user may not enter, such as a HOME left over from another user.
        if os.path.isfile(candidate):
            return candidate
    return None


def _read_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"configuration file {path}: expected a TOML file, there is none") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path}: expected TOML in UTF-8: {error}") from None


def _kinds(annotation: object) -> tuple[type, ...]:
    """The types that an option accepts: (int,), (Path, NoneType), ..."""
    if isinstance(annotation, types.UnionType):
        return tuple(kind for part in typing.get_args(annotation) for kind in _kinds(part))
    return (annotation,)


def _is_path(name: str) -> bool:
    return name.endswith("_path")


def _from_text(name: str, kinds: tuple[type, ...], text: str, origin: str) -> object:
    """The value that an environment variable's text stands for."""
    if text == NOTHING and types.NoneType in kinds:
        return None
    if bool in kinds:
        if text.lower() not in _TRUTH:
            raise ConfigError(f"{name} ({origin}): expected true or false, got {text!r}")
        return _TRUTH[text.lower()]
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                raise ConfigError(f"{name} ({origin}): expected {kind.__name__}, got {text!r}") from None
    return _expanded(name, text, origin) if _is_path(name) else text


def _from_file(name: str, kinds: tuple[type, ...], value: object, path: Path) -> object:
    """The value of a key of the file. Relative paths are relative to the file's directory."""
    if value == NOTHING and types.NoneType in kinds:
        return None
    if _is_path(name) and isinstance(value, str):
        return path.parent.resolve() / _expanded(name, value, f"file {path}")
    accepted = (*kinds, int) if float in kinds else kinds
    if isinstance(value, bool) and bool not in kinds or not isinstance(value, accepted):
        wanted = " or ".join(kind.__name__ for kind in kinds if kind is not types.NoneType)
        raise ConfigError(f"{name} (file {path}): expected {wanted}, got {value!r}")
    return value


def _refuse_unknown(names: set[str], known: Mapping[str, object], origin: str) -> None:
    unknown = sorted(names - set(known))
    if unknown:
        raise ConfigError(
            f"{origin}: expected only known options, got {', '.join(unknown)}. Known: {', '.join(sorted(known))}"
        )


def load_settings(
    flags: Mapping[str, object],
    environment: Mapping[str, str] = os.environ,
    config_file: Path | None = None,
) -> tuple[Setting, ...]:
    """Every option of BrainConfig with the value in force and its origin, in the order of BrainConfig.

    flags: option name -> value given on the command line; None values count as not given.
    Raises ConfigError for unknown names, wrong kinds and a catalogue that nothing names; FileNotFoundError for
    a named configuration file that is missing.
    """
    annotations = typing.get_type_hints(BrainConfig)
    fields = {field.name: field for field in dataclasses.fields(BrainConfig)}
    found: dict[str, Setting] = {}

    for name, path in default_paths(environment).items():
        found[name] = Setting(name, path, "default")
    file = _find_file(config_file, environment)
    if file is not None:
        values = _read_file(file)
        _refuse_unknown(set(values), fields, f"configuration file {file}")
        for name, value in values.items():
            checked = _from_file(name, _kinds(annotations[name]), value, file)
            found[name] = Setting(name, checked, f"file {file}")
    variables = {
        key[len(VARIABLE_PREFIX) :].lower(): key
        for key in environment
        if key.startswith(VARIABLE_PREFIX) and key not in (FILE_VARIABLE, DEBUG_VARIABLE)
    }
    _refuse_unknown(set(variables), fields, f"environment variables {VARIABLE_PREFIX}*")
    for name, key in variables.items():
        if environment[key]:
            value = _from_text(name, _kinds(annotations[name]), environment[key], f"environment {key}")
            found[name] = Setting(name, value, f"environment {key}")
    for name, value in flags.items():
        if value is not None:
            value = None if str(value) == NOTHING and types.NoneType in _kinds(annotations[name]) else value
            found[name] = Setting(name, value, f"flag --{name.removesuffix('_path').replace('_', '-')}")
    return tuple(_in_force(field, found) for field in fields.values())


def _in_force(field: dataclasses.Field, found: Mapping[str, Setting]) -> Setting:
    if field.name in found:
        return found[field.name]
    if field.default is not dataclasses.MISSING:
        return Setting(field.name, field.default, "default")
    raise ConfigError(
        f"{field.name}: expected a value, none is given. Pass --{field.name.removesuffix('_path')}, set "
        f"{VARIABLE_PREFIX}{field.name.upper()}, or write {field.name} = ... into the configuration file"
    )


def settings_of(options: argparse.Namespace) -> tuple[Setting, ...]:
    """The options in force for a command line of omega-edge."""
    flags = {
        "storage_path": options.storage,
        "catalog_path": options.catalog,
        "model_path": options.model,
        "time_zone": options.time_zone,
        # Only the verbs that sync have these.
        "sharing": getattr(options, "sharing", None),
        "constellation_url": getattr(options, "constellation_url", None),
        "catalog_keys_path": getattr(options, "catalog_keys", None),
    }
    return load_settings(flags, os.environ, options.config)


def brain_config(settings: tuple[Setting, ...]) -> BrainConfig:
    """The BrainConfig that the settings describe. Raises ConfigError where a value is out of range."""
    return BrainConfig.from_mapping({setting.name: setting.value for setting in settings})
