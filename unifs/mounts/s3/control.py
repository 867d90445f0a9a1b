"""The rare operations of a service, by boto3 in threads: buckets and what is set on them.

Reading and writing never come here: boto3 costs 1.6–2 ms a request and 60 MiB to import, so it is
imported in a thread when somebody first asks. It retries nothing; that is its caller's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from unifs.errors import InvalidArgument, UnifsError, Unreachable
from unifs.mounts.s3.errors import Refusal
from unifs.mounts.s3.trust import bundle_of

if TYPE_CHECKING:
    from unifs.mounts.blocking import Blocking
    from unifs.mounts.s3.options import Credentials, CredentialSource, S3Options

#: Below the deadline of a control operation, for a thread cannot be cancelled.
CONNECT_S: Final = 5
ANSWER_S: Final = 20


class Control:
    """boto3's client for one service, made anew when the identity changes."""

    def __init__(
        self, options: S3Options, credentials: CredentialSource, blocking: Blocking
    ) -> None:
        self._options = options
        self._credentials = credentials
        self._blocking = blocking
        self._client: Any = None
        self._identity: Credentials | None = None

    async def call(self, operation: str, **parameters: object) -> dict[str, Any]:
        """One call of boto3, by its name there ("put_bucket_policy"); its answer's fields.

        Errors are those of the mount. A call that was begun is waited for.
        """
        identity = await self._credentials.current()
        return await self._blocking.change(self._call, identity, operation, parameters)

    def _call(
        self, identity: Credentials | None, operation: str, parameters: dict[str, object]
    ) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

        try:
            if self._client is None or identity != self._identity:
                self._client, self._identity = self._made(identity), identity
            answer: dict[str, Any] = getattr(self._client, operation)(**parameters)
        except ClientError as error:
            raise _named(operation, error.response) from error
        except ParamValidationError as error:
            raise InvalidArgument(_one_sentence(str(error))) from error
        except BotoCoreError as error:
            raise Unreachable(f"{operation}: {error}") from error
        answer.pop("ResponseMetadata", None)
        return answer

    def _made(self, identity: Credentials | None) -> Any:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        options = self._options
        addressing = options.addressing
        if addressing == "auto" and options.endpoint:
            addressing = "path"
        settings: dict[str, Any] = {
            "s3": {"addressing_style": addressing},
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "connect_timeout": CONNECT_S,
            "read_timeout": ANSWER_S,
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            # The data path knows no proxy either: both must reach the same service.
            "proxies": {"http": None, "https": None},
        }
        if identity is None:
            settings["signature_version"] = UNSIGNED
        # A session without files or environment: who we are was said.
        client = boto3.session.Session(
            aws_access_key_id=identity.access_key if identity else None,
            aws_secret_access_key=identity.secret_key if identity else None,
            aws_session_token=(identity.session_token or None) if identity else None,
            region_name=options.region,
        ).client(
            "s3",
            endpoint_url=options.endpoint or None,
            config=Config(**settings),
            verify=bundle_of(options),
        )
        if options.requester_pays:
            client.meta.events.register("before-sign.s3", _pay)
        return client

    async def make_bucket(self, bucket: str) -> None:
        """Create a bucket in the mount's region."""
        region = self._options.region
        endpoint = self._options.endpoint
        is_amazon = not endpoint or endpoint.endswith(".amazonaws.com")
        if region == "us-east-1" or not is_amazon:
            await self.call("create_bucket", Bucket=bucket)
            return
        place = {"LocationConstraint": region}
        await self.call("create_bucket", Bucket=bucket, CreateBucketConfiguration=place)

    async def remove_bucket(self, bucket: str) -> None:
        """Delete an empty bucket."""
        await self.call("delete_bucket", Bucket=bucket)


def _pay(request: Any, **_: object) -> None:
    """The data path says so with every request, too."""
    request.headers["x-amz-request-payer"] = "requester"


def _one_sentence(text: str) -> str:
    """What is wrong with parameters, which botocore tells in lines of their own."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(line for line in lines if line != "Parameter validation failed:")


def _named(operation: str, response: Any) -> UnifsError:
    said = response.get("Error", {})
    meta = response.get("ResponseMetadata", {})
    status = int(meta.get("HTTPStatusCode", 500))
    headers = {str(name): str(value) for name, value in meta.get("HTTPHeaders", {}).items()}
    refusal = Refusal(status, str(said.get("Code", "")), str(said.get("Message", "")), headers)
    return refusal.error(operation)
