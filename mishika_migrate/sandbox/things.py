"""Sample rows of what belongs to the proxy itself: its models, credentials, settings, files, leases.

Imports the sandbox's `people`, `rows` and `words`. Ciphertexts are random bytes of the right shape.
"""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import TYPE_CHECKING

from mishika_migrate.sandbox import people, rows, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mishika_migrate.sandbox.people import Crowd
    from mishika_migrate.sandbox.rows import Value

    Record = dict[str, Value]

_MANY = 8  # rows of each of these tables: proxies have a handful


def deployments(crowd: Crowd) -> tuple[str, ...]:
    """The ids of the proxy's models."""
    random = crowd.random("deployments")
    return tuple(words.identifier(random) for _ in range(_MANY))


def proxy_models(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("proxy models")
    for number, deployment in enumerate(deployments(crowd)):
        name, provider, base = words.MODELS[number % len(words.MODELS)]
        secrets: dict[str, object] = {
            "model": words.ciphertext(random, len(provider) + 1 + len(name)),
            "api_base": words.ciphertext(random, len(base)),
            "api_key": words.ciphertext(random, 51),
        }
        info = {"id": deployment, "db_model": True, "team_id": None, "note": random.choice(words.PLACES)}
        yield {
            "model_id": deployment,
            "model_name": name,
            "mishikallm_params": rows.document({**secrets, "rpm": 600, "use_in_pass_through": False}),
            "model_info": rows.document(info),
            **_signed(crowd, number),
        }


def credentials(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("credentials")
    for number in range(3):
        yield {
            "credential_id": words.identifier(random),
            "credential_name": f"{words.PLACES[number]} account {crowd.seed}",
            "credential_values": rows.document({"api_key": words.ciphertext(random, 51)}),
            "credential_info": rows.document({"custom_llm_provider": "azure"}),
            **_signed(crowd, number),
        }


def config(crowd: Crowd) -> Iterator[Record]:
    """One row, of the one parameter that is stored encrypted."""
    random = crowd.random("config")
    variables = {
        "PROXY_BASE_URL": words.ciphertext(random, 30),
        "SLACK_WEBHOOK_URL": words.ciphertext(random, 70),
    }
    yield {"param_name": "environment_variables", "param_value": rows.document(variables)}


def notifications(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("notifications")
    for number in range(_MANY):
        yield {
            "request_id": words.identifier(random),
            "user_id": random.choice(crowd.users),
            "models": rows.array((None, [], ["gpt-4o", None, 'a "quoted", one'])[number % 3]),
            "justification": rows.text(words.prose(random, 120)),
            "status": ("pending", "approved", "disapproved")[number % 3],
        }


def files(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("files")
    for number in range(_MANY):
        plain = f"mishikallm_proxy:application/pdf;unified_id,{words.identifier(random)}"
        yield {
            "id": words.identifier(random),
            "unified_file_id": base64.urlsafe_b64encode(plain.encode()).decode().rstrip("="),
            "file_object": rows.document({"object": "file", "filename": f"Übersicht {number}.pdf", "bytes": number}),
            "model_mappings": rows.document(dict.fromkeys(deployments(crowd)[:2], "file-abc")),
            **_times(crowd, number),
        }


def vector_stores(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("vector stores")
    for number in range(4):
        yield {
            "vector_store_id": f"vs_{random.getrandbits(64):016x}",
            "custom_llm_provider": "bedrock",
            "vector_store_name": random.choice(words.NAMES).translate({9: " ", 92: "/"}),
            "vector_store_description": None if number % 2 else rows.text(words.prose(random, 80)),
            "vector_store_metadata": rows.document({"region": "eu"}) if number % 2 else None,
            **_times(crowd, number),
            "mishikallm_credential_name": f"{words.PLACES[number % 3]} account {crowd.seed}",
        }


def leases(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("leases")
    yield {
        "cronjob_id": words.identifier(random),
        "pod_id": words.identifier(random),
        "status": "ACTIVE",
        "last_updated": rows.moment(crowd.now),
        "ttl": rows.moment(crowd.now + timedelta(minutes=1)),
    }


def _times(crowd: Crowd, number: int) -> Record:
    created = crowd.now - timedelta(days=100 - number, milliseconds=123)
    return {"created_at": rows.moment(created), "updated_at": rows.moment(created + timedelta(days=number))}


def _signed(crowd: Crowd, number: int) -> Record:
    return {**_times(crowd, number), "created_by": people.UI_USER, "updated_by": people.UI_USER}
