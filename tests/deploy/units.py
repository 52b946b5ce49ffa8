"""The units of deploy/ssh/ as data, and the commands that systemd would start from them."""

import re
import shlex
from pathlib import Path

SSH = Path(__file__).parents[2] / "deploy" / "ssh"
UNITS = sorted(SSH.glob("*.service"))

YES = "yes|no"
PATH = r"/[\w/.-]+"
# What these units may say, by section: a pattern of the whole value (systemd.unit(5), systemd.service(5),
# systemd.exec(5)).
DIRECTIVES = {
    "Unit": {"Description": r"[\w ,%]+", "Wants": r"[\w.-]+\.target", "After": r"[\w.-]+\.target"},
    "Service": {
        "CacheDirectory": r"[\w/-]+",
        "Environment": r"\w+=\S+",
        "EnvironmentFile": PATH,
        "ExecStart": rf"{PATH} .+",
        "LimitNOFILE": r"\d+",
        "NoNewPrivileges": YES,
        "ProtectControlGroups": YES,
        "ProtectKernelModules": YES,
        "ProtectKernelTunables": YES,
        "ProtectSystem": "yes|no|full|strict",
        "Restart": "no|always|on-failure|on-success|on-abnormal|on-abort|on-watchdog",
        "RestartSec": r"\d+",
        "RestrictSUIDSGID": YES,
        "StateDirectory": r"[\w/-]+",
        "TimeoutStopSec": r"\d+",
        "UMask": r"0[0-7]{3}",
        "User": r"[a-z]+",
        "WorkingDirectory": PATH,
    },
    "Install": {"WantedBy": r"[\w.-]+\.target"},
}


def directives(text: str) -> list[tuple[str, str, str]]:
    """Section, name and value of each line that is no comment."""
    found, section = [], ""
    for line in text.splitlines():
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if head := re.fullmatch(r"\[(\w+)\]", line):
            section = head[1]
            continue
        name, equals, value = line.partition("=")
        assert equals, f"no directive: {line!r}"
        found.append((section, name, value))
    return found


def mistakes(text: str) -> list[str]:
    """The lines that are not as `DIRECTIVES` has them."""
    return [
        f"[{section}] {name}={value}"
        for section, name, value in directives(text)
        if not re.fullmatch(DIRECTIVES.get(section, {}).get(name, "(?!)"), value)
    ]


def environment_file(text: str) -> dict[str, str]:
    """The variables of an EnvironmentFile, none of which is quoted."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def command(text: str, environment: dict[str, str], specifiers: dict[str, str]) -> list[str]:
    """What the unit's ExecStart starts: words in which specifiers such as %i and variables are replaced."""
    (line,) = [value for _, name, value in directives(text) if name == "ExecStart"]
    for specifier, value in specifiers.items():
        line = line.replace(f"%{specifier}", value)
    assert "%" not in line
    return [re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], word) for word in shlex.split(line)]
