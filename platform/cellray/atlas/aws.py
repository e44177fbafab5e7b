"""What the environment and AWS's profiles say of an object store: credentials, region, endpoint.

obstore knows the environment, web identity and the roles of machines. Profiles (``AWS_PROFILE``, or
``default`` in ``~/.aws``) it does not know: they are read by botocore, as s3fs and MLflow do, so
that one profile opens atlases, checkpoints and artifacts.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cellray.core.errors import CellrayError, suggest
from cellray.core.secrets import first_line, scrub

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider

REGION = "us-east-1"
"""What servers that are not Amazon's take."""


@dataclass(frozen=True)
class Access:
    """How an object store is reached.

    Attributes
    ----------
    region
        To sign for.
    endpoint
        Of a server that is not Amazon's; None for Amazon's own.
    profile
        The profile whose credentials are used; None where the environment has keys, or where
        nothing but the machine itself may have any.
    credentials
        Those of the profile, which renew themselves.
    """

    region: str
    endpoint: str | None
    profile: str | None = None
    credentials: "Boto3CredentialProvider | None" = field(default=None, repr=False)


def access() -> Access:
    """Find out how this process reaches object stores; the environment comes before a profile.

    Raises
    ------
    CellrayError
        ``AWS_PROFILE`` names none, a profile that gives no credentials, or an endpoint that is no
        address.
    """
    return _access(tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))))


@lru_cache(maxsize=8)
def _access(variables: tuple[tuple[str, str], ...]) -> Access:
    """Read the files of profiles once, as long as the variables stay what they are."""
    env, (profile, settings, make) = dict(variables), _profile()
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    name = "AWS_ENDPOINT_URL" if endpoint else f"endpoint_url of the profile '{profile}'"
    endpoint = endpoint or settings.get("endpoint_url")
    if endpoint and not (
        urlsplit(endpoint).scheme in {"http", "https"} and urlsplit(endpoint).netloc
    ):
        raise CellrayError(
            f"{name} is '{scrub(endpoint)}', which is no address", "give http(s)://HOST[:PORT]"
        )
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or settings.get("region")
    known = bool(env.get("AWS_ACCESS_KEY_ID")) or is_unsigned()
    credentials = make() if profile is not None and not known else None
    return Access(
        region or REGION,
        endpoint,
        profile if credentials is not None else None,
        credentials,
    )


def is_unsigned() -> bool:
    """Say whether requests go without credentials, as to a public bucket."""
    return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in {"1", "true"}


def _profile() -> tuple[str | None, dict[str, Any], Callable[[], Any]]:
    """Give the profile's name, its region and endpoint, and what makes its credentials."""
    import botocore.session
    from botocore.exceptions import BotoCoreError, ClientError

    session = botocore.session.Session()
    try:
        known = session.available_profiles
        name = session.get_config_variable("profile") or "default"
        if name not in known:
            if os.environ.get("AWS_PROFILE"):
                raise CellrayError(f"AWS_PROFILE is '{name}', and no profile", suggest(name, known))
            return None, {}, lambda: None
        said = dict(session.get_scoped_config())
        services = session.full_config.get("services", {}).get(said.get("services"), {})
        said |= services.get("s3", {})
    except BotoCoreError as error:
        raise CellrayError(
            f"AWS's files of profiles cannot be read: {first_line(error)}",
            "mend ~/.aws/config and ~/.aws/credentials",
        ) from error

    def credentials() -> "Boto3CredentialProvider | None":
        from obstore.auth.boto3 import Boto3CredentialProvider

        try:
            if session.get_credentials() is None:
                return None  # it says no more than a region, say
            provider = Boto3CredentialProvider(session)
            provider()  # what is asked elsewhere (a role, a single sign-on) is asked once now
        except (BotoCoreError, ClientError) as error:
            raise CellrayError(
                f"the AWS profile '{name}' gives no credentials: {first_line(error)}",
                "sign in again (aws sso login), or mend the profile",
            ) from error
        return provider

    return name, said, credentials
