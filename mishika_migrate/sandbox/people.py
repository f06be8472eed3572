"""Sample rows of who may call and for how much: budgets, organizations, teams, users and virtual keys.

Imports the sandbox's `rows` and `words`. Everything follows from the seed and the number of keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from mishika_migrate.sandbox import rows, words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mishika_migrate.sandbox.rows import Value

    Record = dict[str, Value]

UI_TEAM = "mishikallm-dashboard"  # the team of UI sessions, which has no row
UI_USER = "default_user_id"  # the user behind the master key, who need not have one
_MODEL_BUDGET = {"gpt-4o": {"max_budget": 0.1, "budget_duration": "1d"}}
_FAR = datetime(2099, 12, 31, 23, 59, 59, 999000)


def secret(seed: int, number: int) -> str:
    """The key that a caller would send: `sk-` and 32 hex digits."""
    return "sk-" + hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=16).hexdigest()


def token(key: str) -> str:
    """What the proxy stores of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """`members` are user ids; `aliases` says that it has a row of model aliases."""

    id: str
    alias: str
    members: tuple[str, ...]
    aliases: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """`team`, `user` and `organization` are ids."""

    number: int
    token: str
    alias: str | None
    team: str | None
    team_alias: str | None
    user: str | None
    organization: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """Everybody who is referenced, before any row is written."""

    seed: int
    now: datetime
    budgets: tuple[str, ...]
    organizations: tuple[str, ...]
    users: tuple[str, ...]
    end_users: tuple[str, ...]
    teams: tuple[Team, ...]
    keys: tuple[Key, ...]

    def random(self, purpose: str) -> Random:
        """A generator of its own for each table, so that one table's size does not change another."""
        return Random(f"{self.seed}/{purpose}")  # text seeds do not depend on PYTHONHASHSEED


def gather(*, seed: int, keys: int) -> Crowd:
    """The crowd around `keys` virtual keys: a team for 20 of them, a user for 4, and so on."""
    random = Random(f"{seed}/crowd")
    users = tuple(words.identifier(random) for _ in range(max(5, keys // 4)))
    organizations = tuple(words.identifier(random) for _ in range(max(2, keys // 200)))
    teams = tuple(_team(random, number, users) for number in range(max(3, keys // 20)))
    return Crowd(
        seed=seed,
        now=datetime(2025, 6, 1) + timedelta(days=seed % 365),
        budgets=tuple(words.identifier(random) for _ in range(max(4, keys // 40))),
        organizations=organizations,
        users=users,
        end_users=tuple(f"customer {number:06d}\t{random.choice(words.PLACES)}" for number in range(keys // 2 + 1)),
        teams=teams,
        keys=tuple(_key(random, seed, number, teams, users, organizations) for number in range(keys)),
    )


def _team(random: Random, number: int, users: Sequence[str]) -> Team:
    return Team(
        id=words.identifier(random),
        alias=f"{random.choice(words.PLACES)} team {number}",
        members=tuple(random.sample(users, random.randint(1, 5))),
        aliases=number % 4 == 0,
    )


def _key(
    random: Random,
    seed: int,
    number: int,
    teams: Sequence[Team],
    users: Sequence[str],
    organizations: Sequence[str],
) -> Key:
    """Of 10 keys: 5 of a team, 3 of a user, 1 of an organization, 1 of nobody; two are UI sessions."""
    kind = number % 10
    team = random.choice(teams) if kind < 5 else None
    user = random.choice(team.members) if team and random.random() < 0.6 else None
    interface = number in (7, 17)
    if 5 <= kind < 8:
        user = random.choice(users)
    name = f"{random.choice(words.NAMES)} {number}"
    return Key(
        number=number,
        token=token(secret(seed, number)),
        alias=None if interface or kind == 9 else name,
        team=UI_TEAM if interface else team.id if team else None,
        team_alias=team.alias if team else None,
        user=UI_USER if interface else user,
        organization=random.choice(organizations) if kind == 8 else None,
    )


# -- rows -------------------------------------------------------------------------------------------


def budgets(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("budgets")
    for budget in crowd.budgets:
        yield {
            "budget_id": budget,
            "max_budget": random.choice((None, 10.0, 99.95, 1e6)),
            "soft_budget": random.choice((None, 5.5)),
            "max_parallel_requests": random.choice((None, 10, 2_000_000_000)),
            **_rates(random),
            "model_max_budget": random.choice((None, rows.document({"gpt-4o": {"budget_limit": 0.3}}))),
            **_period(random, crowd.now),
            **_signed(random, crowd.now),
        }


def organizations(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("organizations")
    for number, organization in enumerate(crowd.organizations):
        yield {
            "organization_id": organization,
            "organization_alias": f"{random.choice(words.PLACES)} holding {number}",
            "budget_id": random.choice(crowd.budgets),
            "metadata": rows.document({"cost center": number, "note": words.prose(random, 40)}),
            "models": rows.array(random.choice((None, [], ["gpt-4o"]))),
            "spend": words.amount(random),
            "model_spend": "{}",
            **_signed(random, crowd.now),
        }


def model_aliases(crowd: Crowd) -> Iterator[Record]:
    """One row for each team that has aliases, in the order of the teams; the server gives the ids."""
    random = crowd.random("model aliases")
    for team in crowd.teams:
        if team.aliases:
            model, _, _ = random.choice(words.MODELS)
            aliases = rows.document({"fast": model, f"{team.alias}/best": "gpt-4o"})
            yield {"aliases": aliases, **_signed(random, crowd.now)}


def teams(crowd: Crowd, alias_ids: Sequence[int]) -> Iterator[Record]:
    random, ids = crowd.random("teams"), iter(alias_ids)
    for number, team in enumerate(crowd.teams):
        roles = [{"role": "user", "user_id": user, "user_email": None} for user in team.members]
        roles[0]["role"] = "admin"
        yield {
            "team_id": team.id,
            "team_alias": rows.text(team.alias) if number % 9 else None,
            "organization_id": random.choice(crowd.organizations) if number % 5 == 0 else None,
            "admins": rows.array(None if number % 7 == 6 else [team.members[0]]),
            "members": rows.array(None if number % 7 == 6 else team.members),
            "members_with_roles": rows.document(roles),
            "metadata": rows.document({"place": random.choice(words.PLACES), "guardrails": []} if number % 3 else {}),
            "models": rows.array(None if number % 11 == 10 else words.models(random)),
            "blocked": rows.flag(number % 10 == 1),
            **_limits(random, crowd.now),
            **_times(random, crowd.now),
            "model_spend": rows.document({"gpt-4o": words.amount(random)} if number % 4 == 0 else {}),
            "team_member_permissions": rows.array(random.choice((None, [], ["/key/generate", "/key/info"]))),
            "model_id": next(ids) if team.aliases else None,
        }


def users(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("users")
    member_of: dict[str, list[str]] = {}
    for team in crowd.teams:
        for member in team.members:
            member_of.setdefault(member, []).append(team.id)
    for number, user in enumerate(crowd.users):
        yield {
            "user_id": user,
            "user_alias": f"{random.choice(words.PLACES)} user {number}" if number % 3 else None,
            "team_id": None,
            "sso_user_id": f"sso|{crowd.seed}|{number:08d}" if number % 2 else None,
            "organization_id": crowd.organizations[number % len(crowd.organizations)] if number % 6 == 0 else None,
            "password": random.randbytes(32).hex() if number % 8 == 0 else None,
            "teams": rows.array(member_of.get(user, [])),
            "user_role": random.choice((None, *words.ROLES)),
            "user_email": f"user{number}@example.com" if number % 3 else None,
            "models": rows.array(random.choice((None, [], ["no-default-models"], words.models(random)))),
            "metadata": rows.document({"signed_up": "inviteé"} if number % 4 == 0 else {}),
            **_limits(random, crowd.now),
            "allowed_cache_controls": rows.array(random.choice(([], ["no-cache", "no-store"]))),
            "model_spend": "{}",
            "model_max_budget": "{}",
            **_times(random, crowd.now),
        }


def keys(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("keys")
    for key in crowd.keys:
        interface = key.team == UI_TEAM
        expires = crowd.now + timedelta(days=1) if interface else _expiry(random, crowd.now)
        yield {
            "token": key.token,
            "key_name": "sk-..." + secret(crowd.seed, key.number)[-4:],
            "key_alias": None if key.alias is None else rows.text(key.alias),
            "soft_budget_cooldown": rows.flag(key.number % 40 == 39),
            "expires": None if expires is None else rows.moment(expires),
            # Never NULL: MishikaLLM answers 401 to a key without a list.
            "models": rows.array(words.models(random)),
            "aliases": rows.document({"gpt-4": "gpt-4o"} if key.number % 13 == 3 else {}),
            "config": rows.document({"cache": {"ttl": 60}} if key.number % 29 == 3 else {}),
            "user_id": key.user,
            "team_id": key.team,
            "permissions": rows.document({"get_spend_routes": True} if key.number % 17 == 4 else {}),
            "metadata": rows.document(_key_metadata(random, key)),
            "blocked": random.choices((None, "f", "t"), weights=(12, 5, 1))[0],
            **_limits(random, crowd.now),
            "allowed_cache_controls": rows.array(random.choice((None, [], ["no-cache"]))),
            "allowed_routes": rows.array(random.choice(([], [], ["/chat/completions", "llm_api_routes"]))),
            "model_spend": rows.document({"gpt-4o-mini": words.amount(random)} if key.number % 6 == 0 else {}),
            "model_max_budget": rows.document(_MODEL_BUDGET if key.number % 23 == 5 else {}),
            "budget_id": random.choice(crowd.budgets) if key.number % 5 == 2 and not interface else None,
            "organization_id": key.organization,
            **_times(random, crowd.now),
            "created_by": key.user,
            "updated_by": UI_USER if key.number % 3 == 0 else key.user,
        }


def team_memberships(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("team memberships")
    for team in crowd.teams:
        for member in team.members:
            budget = random.choice((None, random.choice(crowd.budgets)))
            yield {"user_id": member, "team_id": team.id, "spend": words.amount(random), "budget_id": budget}


def organization_memberships(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("organization memberships")
    for number, user in enumerate(crowd.users):
        if number % 6 == 0:
            yield {
                "user_id": user,
                "organization_id": crowd.organizations[number % len(crowd.organizations)],
                "user_role": random.choice((None, "org_admin", "internal_user")),
                "spend": words.amount(random),
                "budget_id": random.choice((None, random.choice(crowd.budgets))),
                **_times(random, crowd.now),
            }


def end_users(crowd: Crowd) -> Iterator[Record]:
    random = crowd.random("end users")
    for number, user in enumerate(crowd.end_users):
        yield {
            "user_id": rows.text(user),
            "alias": random.choice((None, f"Kundin {number}")),
            "spend": words.amount(random),
            "allowed_model_region": random.choice((None, "eu")),
            "default_model": random.choice((None, "gpt-4o-mini")),
            "budget_id": random.choice(crowd.budgets) if number % 4 == 0 else None,
            "blocked": rows.flag(number % 25 == 7),
        }


def invitations(crowd: Crowd) -> Iterator[Record]:
    random, admin = crowd.random("invitations"), crowd.users[0]
    for number, user in enumerate(crowd.users[:: max(2, len(crowd.users) // 25)]):
        created = _past(random, crowd.now)
        yield {
            "id": words.identifier(random),
            "user_id": user,
            "is_accepted": rows.flag(number % 2 == 0),
            "accepted_at": rows.moment(created + timedelta(hours=3)) if number % 2 == 0 else None,
            "expires_at": rows.moment(created + timedelta(days=7)),
            "created_at": rows.moment(created),
            "created_by": admin,
            "updated_at": rows.moment(created),
            "updated_by": admin,
        }


# -- groups of columns that several tables have -----------------------------------------------------


def _limits(random: Random, now: datetime) -> Record:
    return {
        "max_budget": random.choice((None, None, 0.0, 25.0, 100.1)),
        "spend": words.amount(random),
        "max_parallel_requests": random.choice((None, None, 5)),
        **_rates(random),
        **_period(random, now),
    }


def _rates(random: Random) -> Record:
    return {
        "tpm_limit": random.choice((None, 100_000, 9_000_000_000)),
        "rpm_limit": random.choice((None, 60)),
    }


def _period(random: Random, now: datetime) -> Record:
    if random.random() < 0.6:
        return {"budget_duration": None, "budget_reset_at": None}
    return {
        "budget_duration": random.choice(("1d", "7d", "30d", "1mo")),
        "budget_reset_at": rows.moment(now + timedelta(minutes=random.randint(1, 43_200))),
    }


def _past(random: Random, now: datetime) -> datetime:
    return now - timedelta(milliseconds=random.randint(1, 400 * 86_400_000))


def _times(random: Random, now: datetime) -> Record:
    created = _past(random, now)
    return {"created_at": rows.moment(created), "updated_at": rows.moment(created + (now - created) / 3)}


def _signed(random: Random, now: datetime) -> Record:
    return {**_times(random, now), "created_by": UI_USER, "updated_by": UI_USER}


def _expiry(random: Random, now: datetime) -> datetime | None:
    draw = random.random()
    if draw < 0.7:
        return None
    return _past(random, now) if draw < 0.85 else _FAR - timedelta(days=random.randint(0, 9000))


def _key_metadata(random: Random, key: Key) -> dict[str, object]:
    if key.number % 3 == 0:
        return {}
    return {
        "tags": random.sample(words.TAGS, 2),
        "note": words.prose(random, 30),
        "owner": {"place": random.choice(words.PLACES), "page": key.number},
        **({"model_rpm_limit": {"gpt-4o": 10}} if key.number % 10 == 1 else {}),
    }
