"""Sample rows of what was called: spend logs, error logs, daily usage, audit logs.

Imports the sandbox's `people`, `rows` and `words`. Spend logs are made fast: everything costly is
prepared once in pools, already as COPY text, and a row is one `%` over a template.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from mishika_migrate.sandbox import people, rows, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from random import Random

    from mishika_migrate.sandbox.people import Crowd, Key
    from mishika_migrate.sandbox.rows import Value

    Record = dict[str, Value]

DAYS = 60
SPEND_COLUMNS = (
    "request_id", "call_type", "api_key", "spend", "total_tokens", "prompt_tokens", "completion_tokens",
    "startTime", "endTime", "completionStartTime", "model", "model_id", "model_group", "custom_llm_provider",
    "api_base", "user", "metadata", "cache_hit", "cache_key", "request_tags", "team_id", "end_user",
    "requester_ip_address", "messages", "response", "session_id", "proxy_server_request",
)  # fmt: skip
_SPEND = "\t".join(["%s"] * 15 + [
    # user, then the metadata document around five values
    "%s", '{"user_api_key": "%s", %s, %s, "usage_object": {"total_tokens": %d, "prompt_tokens": %d, %s}}',
    *["%s"] * 10,
]) + "\n"  # fmt: skip
_NOBODY = people.Key(
    number=-1, token="mishikallm_proxy_master_key", alias=None, team=None, team_alias=None,
    user=people.UI_USER, organization=None,
)  # fmt: skip


def spend(crowd: Crowd, *, count: int, long: int, deployments: Sequence[str]) -> Iterator[str]:
    """COPY lines, oldest first, evenly over the last `DAYS` days; `long` of them carry prompts (10 KB).

    `deployments` are the ids of the proxy's models.
    """
    random = crowd.random("spend logs")
    pools = _pools(crowd, random, deployments)
    begin = crowd.now - timedelta(days=DAYS)
    step = timedelta(days=DAYS) / max(1, count)
    draw, bits, pick = random.random, random.getrandbits, random.choice
    callers, size = pools.callers, len(pools.callers)
    for number in range(count):
        caller = callers[int(size * draw() ** 2)]  # some keys are used much more than others
        prompt = bits(11)
        answer = bits(8) + 1
        start = begin + number * step
        started = rows.moment(start)
        ended = rows.moment(start + timedelta(milliseconds=300 + bits(12)))
        if number * long // count != (number + 1) * long // count:
            messages, response, request = _conversation(pools, random)
        else:
            messages, response, request = pick(pools.stubs)
        yield _SPEND % (
            f"chatcmpl-{bits(128):032x}",
            "acompletion",
            caller.token,
            (prompt * 3 + answer * 15) / 1e7,
            prompt + answer,
            prompt,
            answer,
            started,
            ended,
            ended if bits(2) else "\\N",
            *pick(pools.models),
            caller.user,
            caller.token,
            caller.metadata,
            pick(pools.details),
            prompt + answer,
            prompt,
            pick(pools.usage),
            "True" if bits(4) == 0 else "False",
            f"{bits(256):064x}",
            pick(pools.tags),
            caller.team,
            pick(pools.end_users),
            f"10.{bits(4)}.{bits(8)}.{bits(8)}",
            messages,
            response,
            f"{bits(128):032x}" if bits(1) else "\\N",
            request,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Caller:
    """A key's part of its log rows, as COPY text."""

    token: str
    user: str
    team: str
    metadata: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pools:
    """Prepared pieces of COPY text; `models` hold the five columns from model to api_base."""

    callers: tuple[_Caller, ...]
    models: tuple[tuple[str, str, str, str, str], ...]
    details: tuple[str, ...]
    """Members of a log row's metadata."""
    usage: tuple[str, ...]
    tags: tuple[str, ...]
    end_users: tuple[str, ...]
    stubs: tuple[tuple[str, str, str], ...]
    prose: tuple[str, ...]


def _pools(crowd: Crowd, random: Random, deployments: Sequence[str]) -> _Pools:
    models = [
        (f"{provider}/{name}", random.choice(("", *deployments)), name, provider, base)
        for name, provider, base in words.MODELS
        for _ in range(8)
    ]
    tags = [[], ["User-Agent: openai-python"], *([tag, "User-Agent: curl"] for tag in words.TAGS)]
    return _Pools(
        callers=tuple(_caller(key) for key in crowd.keys if key.team != people.UI_TEAM) or (_caller(_NOBODY),),
        models=tuple(models),
        details=tuple(_members(_details(random)) for _ in range(256)),
        usage=tuple(_members({"completion_tokens_details": {"reasoning_tokens": n}}) for n in range(16)),
        tags=(*(rows.document(tag) for tag in tags), "\\N"),
        end_users=("", "", "\\N", *(rows.text(user) for user in crowd.end_users)),
        stubs=(("{}", "{}", "{}"),) * 12 + (("\\N", "\\N", "\\N"), ("[]", "{}", '{"stream": true}')),
        prose=tuple(rows.document(words.prose(random, 960))[1:-1] for _ in range(128)),
    )


def _caller(key: Key) -> _Caller:
    known: dict[str, object] = {
        "user_api_key_alias": key.alias,
        "user_api_key_team_id": key.team,
        "user_api_key_org_id": key.organization,
        "user_api_key_user_id": key.user,
        "user_api_key_team_alias": key.team_alias,
    }
    return _Caller(token=key.token, user=key.user or "", team=key.team or "\\N", metadata=_members(known))


def _members(value: dict[str, object]) -> str:
    """An object's members without its braces, to be put into another object."""
    return rows.document(value)[1:-1]


def _details(random: Random) -> dict[str, object]:
    return {
        "status": "success",
        "batch_models": None,
        "applied_guardrails": random.sample(("pii-mask", "toxicity", "prompt-injection"), random.randint(0, 2)),
        "error_information": None,
        "spend_logs_metadata": {"note": words.prose(random, 40), "place": random.choice(words.PLACES)},
        "requester_ip_address": "",
        "mcp_tool_call_metadata": None,
        "model_map_information": {"model_map_key": random.choice(words.MODELS)[0], "model_map_value": None},
        "additional_usage_values": {"cache_read_input_tokens": random.getrandbits(8)},
        "vector_store_request_metadata": None,
    }


def _conversation(pools: _Pools, random: Random) -> tuple[str, str, str]:
    """Messages, response and request of about 10 KB together."""
    pieces = random.sample(pools.prose, 10)
    messages = (
        f'[{{"role": "system", "content": "{pieces[0]}"}}, {{"role": "user", "content": "{" ".join(pieces[1:6])}"}}]'
    )
    response = (
        f'{{"id": "chatcmpl-{random.getrandbits(128):032x}", "object": "chat.completion", "choices": '
        f'[{{"index": 0, "message": {{"role": "assistant", "content": "{" ".join(pieces[6:9])}"}}}}]}}'
    )
    return messages, response, f'{{"temperature": 0.7, "user": null, "prompt": "{pieces[9]}"}}'


# -- errors, usage, audit ---------------------------------------------------------------------------


def failures(crowd: Crowd, count: int) -> Iterator[Record]:
    """Rows of ErrorLogs."""
    random = crowd.random("error logs")
    for number in range(count):
        name, _, base = random.choice(words.MODELS)
        start = crowd.now - timedelta(milliseconds=random.randint(0, DAYS * 86_400_000))
        yield {
            "request_id": words.identifier(random),
            "startTime": rows.moment(start),
            "endTime": rows.moment(start + timedelta(seconds=2)),
            "api_base": base,
            "model_group": name,
            "mishikallm_model_name": name,
            "request_kwargs": rows.document({"model": name, "prompt": words.prose(random, 200)}),
            "exception_type": random.choice(("RateLimitError", "Timeout", "BadRequestError")),
            "exception_string": rows.text(f'Traceback:\n\tFile "C:\\proxy.py"\n{words.prose(random, 300)}'),
            "status_code": random.choice(("429", "408", "400", "")),
            "model_id": "" if number % 2 else f"deployment {number}",
        }


def usage(crowd: Crowd, entity: str, count: int) -> tuple[tuple[str, ...], Iterator[str]]:
    """Columns and COPY lines of a Daily*Spend table for `entity`: user_id, team_id or tag.

    All (entity, date, api_key, model, provider) differ, but for some twins with a NULL provider,
    as the proxy makes them: NULLs are distinct in a unique index.
    """
    keys = [key for key in crowd.keys if key.team != people.UI_TEAM and (entity != "team_id" or key.team)]
    keys = keys or ([] if entity == "team_id" else [_NOBODY])
    return ("id", entity, *_USAGE_COLUMNS), _usage(crowd, entity, keys, count if keys else 0)


_USAGE_COLUMNS = (
    "date", "api_key", "model", "model_group", "custom_llm_provider", "prompt_tokens", "completion_tokens",
    "cache_read_input_tokens", "cache_creation_input_tokens", "spend", "api_requests", "successful_requests",
    "failed_requests", "created_at", "updated_at",
)  # fmt: skip


def _usage(crowd: Crowd, entity: str, keys: Sequence[Key], count: int) -> Iterator[str]:
    bits = crowd.random(f"daily {entity}").getrandbits
    sums = [_sums(bits(68)) for _ in range(4096)]
    owners = [f"{_owner(entity, key, which)}\t" for which, key in enumerate(keys)]
    tokens = [f"\t{key.token}\t" for key in keys]
    identifier = f"-{bits(16):04x}-4{bits(12):03x}-8{bits(12):03x}-{bits(48):012x}\t"
    which, kind, ago = -1, 0, 0
    date, made = _dates(crowd, ago)
    middles = _middles(kind)
    for number in range(count):
        odd = number % 500
        if odd != 499:  # the twin of the row before it
            which += 1
        if which == len(keys):
            which, kind = 0, kind + 1
            if kind == len(words.MODELS):
                kind, ago = 0, ago + 1
                date, made = _dates(crowd, ago)
            middles = _middles(kind)
        yield (
            # An odd factor: no two of the first 2**32 are the same, and they are in no order.
            f"{number * 0x9E37_79B1 & 0xFFFF_FFFF:08x}{identifier}{owners[which]}{date}{tokens[which]}"
            f"{middles[number % 3 > 0, odd >= 498]}{sums[bits(12)]}{made}"
        )


def _owner(entity: str, key: Key, which: int) -> str:
    if entity == "user_id":
        return key.user or people.UI_USER
    return (key.team or "") if entity == "team_id" else rows.text(words.TAGS[which % len(words.TAGS)])


def _middles(kind: int) -> dict[tuple[bool, bool], str]:
    """Model, group and provider, by whether the group is known and whether the provider is not."""
    name, provider, _ = words.MODELS[kind]
    return {
        (group, lost): rows.line((f"{provider}/{name}", name if group else None, None if lost else provider))[:-1]
        + "\t"
        for group in (False, True)
        for lost in (False, True)
    }


def _sums(drawn: int) -> str:
    """Tokens, spend and counts of requests, from 68 random bits."""
    tokens = (drawn & 0xF_FFFF, drawn >> 20 & 0xFFFF, drawn >> 36 & 0xFF, 0)
    return rows.line((*tokens, (drawn >> 44) / 3e6, 12, 11, 1))[:-1] + "\t"


def _dates(crowd: Crowd, ago: int) -> tuple[str, str]:
    """The day as text, and when its row was made and last added to."""
    day = crowd.now - timedelta(days=ago)
    updated = day + timedelta(hours=12, microseconds=7000)
    return day.date().isoformat(), rows.line((rows.moment(day), rows.moment(updated)))


def audits(crowd: Crowd, count: int) -> Iterator[Record]:
    """Rows of AuditLog: keys that were created, changed and deleted."""
    random = crowd.random("audit logs")
    keys = crowd.keys or (_NOBODY,)
    for number in range(count):
        key = random.choice(keys)
        before = {"token": key.token, "key_alias": key.alias, "spend": words.amount(random)}
        action = ("created", "updated", "deleted")[number % 3]
        yield {
            "id": words.identifier(random),
            "updated_at": rows.moment(crowd.now - timedelta(minutes=number)),
            "changed_by": key.user or "",
            "changed_by_api_key": key.token,
            "action": action,
            "table_name": "MishikaLLM_VerificationToken",
            "object_id": key.token,
            "before_value": None if action == "created" else rows.document(before),
            "updated_values": None if action == "deleted" else rows.document({**before, "blocked": True}),
        }
