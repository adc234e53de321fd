"""What the settings and a project allow."""

from dataclasses import dataclass

MAX_BYTES = 65536

EXECUTABLES = frozenset(
    {
        *("node", "bun", "npm", "npx", "pnpm", "yarn", "python", "python3", "pip", "pip3", "docker", "podman", "adb"),
        *("emulator", "maestro", "gradle", "gradlew", "mvn", "pwsh", "powershell", "bash", "sh", "curl", "wget", "git"),
    }
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bound what a spec file may ask for.

    `executables`: lower-case base names. `trusted_dirs`: real paths of directories that not everybody may write
    to. `roots`: absolute real paths, a `cwd` lies in one of them. `default_cwd`: for a spec without one.
    `health_hosts`: host names and addresses that an http check may ask besides loopback. `denied_env`: more names
    (`X`) and prefixes (`X_*`) of environment keys to refuse. `max_bytes`: of the whole file.
    """

    executables: frozenset[str] = EXECUTABLES
    trusted_dirs: tuple[str, ...] = ()
    roots: tuple[str, ...] = ()
    default_cwd: str | None = None
    health_hosts: frozenset[str] = frozenset()
    denied_env: tuple[str, ...] = ()
    max_specs: int = 5
    max_bytes: int = MAX_BYTES
