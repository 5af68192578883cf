"""Creates people's accounts in Airflow, or gives them today's passwords. Runs in the image of Airflow."""

import json
from pathlib import Path

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
from airflow.utils.providers_configuration_loader import providers_configuration_loaded
from werkzeug.security import check_password_hash

ROLES = {"admin": "Admin", "reviewer": "User"}


@providers_configuration_loaded
def main() -> None:
    """Read ``{name: password}`` and see to it that each can log in."""
    passwords = json.loads(Path("/run/secrets/airflow-passwords.json").read_text())
    with get_application_builder() as builder:
        manager = builder.sm
        for name, role in ROLES.items():
            user = manager.find_user(name)
            if user is None:
                made = manager.add_user(name, name, "", f"{name}@localhost", manager.find_role(role), passwords[name])
                done = bool(made)
            else:
                # A reset ends the account's sessions, so there is none without need.
                same = check_password_hash(user.password, passwords[name])
                done = same or bool(manager.reset_password(user.id, passwords[name]))
            if not done:
                raise SystemExit(f"the account {name} could not be made or changed")


if __name__ == "__main__":
    main()
