from __future__ import annotations

from pathlib import Path

import pytest

from ich_ray.cluster.secrets import Secret, find_secrets, refuse_secrets
from ich_ray.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
HEX = "0123456789abcdef" * 4
# Taken apart, so that no scanner takes this file for a leak.
PLANTED = {
    "an AWS access key": "  aws_access_key_id: AKIA" + "Q3EXAMPLEKEY7ABC",
    "an AWS secret key": "  aws_secret_access_key: " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEX" + "AMPLEKEY",
    "a private key": "  key: |\n    -----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "a GitHub token": "  - git clone with gh" + "p_" + "a1B2" * 9,
    "a Slack token": "  notify: xox" + "b-123456789012-abcdefghijkl",
    "a Google API key": "  maps: AIza" + "SyA-1234567890abcdefghijklmnopqrstuv",
    "an Azure storage key": "  blob: DefaultEndpointsProtocol=https;AccountKey=" + "Zm9v" * 21 + "==",
    "a Hugging Face token": "  - huggingface-cli login --token hf" + "_" + "Ab1" * 11,
    "a bearer token": "  header: 'Authorization: Bearer " + "abcdefghij0123456789xyz'",
    "a password in an address": "  store: s3://minio:" + "hunter2hunter2@storage/bucket",
    "a Ray token": "  - RAY_AUTH_TOKEN=" + HEX[:40] + " ray start --head",
    "a password": "  ssh_password: " + "correct-horse",
    "a long hexadecimal secret": "  session: '" + HEX + "'",
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_secret_is_found_with_its_line_and_not_repeated(kind: str) -> None:
    text = f"cluster_name: x\nprovider: {{type: aws}}\n{PLANTED[kind]}\n"
    line = text.splitlines().index(PLANTED[kind].splitlines()[-1]) + 1
    assert find_secrets(text) == [Secret(line, kind)]
    with pytest.raises(
        ConfigError, match=rf"mine\.yaml: .* must hold no secret, got {kind} in line {line}; "
    ) as caught:
        refuse_secrets(text, "mine.yaml")
    assert PLANTED[kind].split()[-1].strip("'") not in str(caught.value)


def test_all_planted_secrets_of_one_file_are_found() -> None:
    text = "\n".join(PLANTED.values())
    assert {secret.kind for secret in find_secrets(text)} == set(PLANTED)
    with pytest.raises(ConfigError, match="line 1, an AWS secret key in line 2, a private key in line 4;"):
        refuse_secrets(text, "mine.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "- test -s ~/.ray/auth_token && chmod 600 ~/.ray/auth_token",
        "  ~/.ray/auth_token: ~/.ray/auth_token",
        "- RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379",
        "  RAY_AUTH_TOKEN: $RAY_AUTH_TOKEN",
        "  password: null",
        "  password: ${DATABASE_PASSWORD}",
        "  ssh_private_key: ~/.ssh/id_ed25519",
        "secretKeyRef: {name: ray-token, key: auth_token}",
        "learning_rate: {loguniform: [1.0e-5, 1.0e-1]}",
        "tokens: 12",
        "address: http://localhost:8265/jobs@x",
    ],
)
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert find_secrets(text) == []


def test_the_repository_holds_none() -> None:
    files = [path for path in REPOSITORY.rglob("*.y*ml") if ".venv" not in path.parts and "build" not in path.parts]
    assert {path.name for path in files} >= {"cluster.yaml", "onprem.yaml", "kuberay.yaml", "demo.yaml", "default.yaml"}
    assert {path.name: find_secrets(path.read_text()) for path in files} == {path.name: [] for path in files}


def test_the_end_of_a_long_line_is_scanned_too() -> None:
    assert find_secrets("://" + "b:" * 100_000) == []
    assert find_secrets("word " * 2000 + PLANTED["an AWS access key"]) == [Secret(1, "an AWS access key")]
