"""What of a command line starts a container, and what is added to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpbridge.stdio.container_command import ContainerCommand, parse_container_command


def parse(text: str) -> ContainerCommand | None:
    command, *arguments = text.split()
    return parse_container_command(command, arguments)


def parsed(text: str) -> ContainerCommand:
    found = parse(text)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "engine", "prefix"),
    [
        ("docker run -i x", "docker", "docker"),
        ("podman run -i x", "podman", "podman"),
        ("nerdctl run -i x", "nerdctl", "nerdctl"),
        ("podman-remote run -i x", "podman", "podman-remote"),
        ("/usr/bin/docker run -i x", "docker", "/usr/bin/docker"),
        ("./docker run", "docker", "./docker"),
        ("docker container run -i x", "docker", "docker"),
        ("docker --context x run -i y", "docker", "docker --context x"),
        ("docker --context=x run -i y", "docker", "docker --context=x"),
        ("docker --context run run -i y", "docker", "docker --context run"),
        ("docker -c container container run -i y", "docker", "docker -c container"),
        ("docker -H tcp://a:1 -H unix:///b run y", "docker", "docker -H tcp://a:1 -H unix:///b"),
        ("docker -Htcp://a:1 run y", "docker", "docker -Htcp://a:1"),
        ("docker --config=/c -l debug -D run y", "docker", "docker --config=/c -l debug -D"),
        ("docker -Dl debug run y", "docker", "docker -Dl debug"),
        ("docker -Dldebug --tls run y", "docker", "docker -Dldebug --tls"),
        (
            "docker --tls=false --tlscacert run run y",
            "docker",
            "docker --tls=false --tlscacert run",
        ),
        # Options of a newer engine.
        ("docker --new run y", "docker", "docker --new"),
        ("docker --new value run y", "docker", "docker --new value"),
        ("docker --new=value run y", "docker", "docker --new=value"),
        ("docker -- run y", "docker", "docker --"),
        ("podman --remote -c run run y", "podman", "podman --remote -c run"),
        ("podman -r --url ssh://u@h run y", "podman", "podman -r --url ssh://u@h"),
        # podman and nerdctl take such options behind `run` too.
        ("podman run --url ssh://h -i y", "podman", "podman --url=ssh://h"),
        ("podman --remote run --log-level debug y", "podman", "podman --remote --log-level=debug"),
        ("podman run --remote -i y", "podman", "podman --remote=true"),
        ("nerdctl -n k8s.io run y", "nerdctl", "nerdctl -n k8s.io"),
        (
            "nerdctl run --namespace k8s.io --debug y",
            "nerdctl",
            "nerdctl --namespace=k8s.io --debug=true",
        ),
        ("docker run --namespace x", "docker", "docker"),
        # What follows the image is none of the engine's business.
        ("podman run y --url z", "podman", "podman"),
    ],
)
def test_an_engine_with_its_own_options(text: str, engine: str, prefix: str) -> None:
    command = parsed(text)
    assert command.engine == engine
    assert list(command.prefix) == prefix.split()
    assert command.engine_line("/p") == ["/p", *prefix.split()[1:]]
    assert [*command.head, *command.tail] == text.split()


@pytest.mark.parametrize(
    "text",
    [
        "cat",
        "docker",
        "docker --context x",
        "docker ps run",
        "docker exec -i x run",
        "docker start -ai x",
        "docker compose run x",
        "docker container",
        "docker container ps",
        "docker container container run",
        "docker --context",
        "docker-compose run x",
        "dockerd run",
        "sudo docker run -i x",
        "env A=b docker run -i x",
        "sh -c docker\\ run",
        "my-docker run -i x",
        "docker - run",
    ],
)
def test_no_container(text: str) -> None:
    assert parse(text) is None


NOTHING: dict[str, object] = {
    "interactive": False,
    "tty": False,
    "detach": False,
    "remove": False,
    "replace": False,
    "cidfile": None,
    "name": None,
}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("x", {}),
        ("-i x", {"interactive": True}),
        ("--interactive x", {"interactive": True}),
        ("-i=true x", {"interactive": True}),
        ("-i=false x", {}),
        ("--interactive=1 x", {"interactive": True}),
        ("--interactive=T x", {"interactive": True}),
        ("--interactive=0 x", {}),
        ("-i --interactive=false x", {}),
        ("--interactive=false -i x", {"interactive": True}),
        ("-it x", {"interactive": True, "tty": True}),
        ("-dit x", {"interactive": True, "tty": True, "detach": True}),
        ("-it=false x", {"interactive": True}),
        ("-ti --rm x", {"interactive": True, "tty": True, "remove": True}),
        ("--rm=false -i x", {"interactive": True}),
        ("--detach --tty x", {"detach": True, "tty": True}),
        # A value, and no flags.
        ("-e it x", {}),
        ("-eit x", {}),
        ("-ie t x -d", {"interactive": True}),
        ("-v -t x -d", {}),
        ("-e=-d x", {}),
        ("--env --rm x", {}),
        ("--entrypoint -it x -d", {}),
        ("--unknown -i x", {}),
        ("--unknown=1 -i x", {"interactive": True}),
        ("--privileged -i x", {"interactive": True}),
        # Behind the image.
        ("x -i --rm --name y", {}),
        ("-- x -i", {}),
        ("-i -- --rm", {"interactive": True}),
        ("- -i", {}),
        ("--name a -i x", {"interactive": True, "name": "a"}),
        ("--name=a --name b x", {"name": "b"}),
        ("--name= x", {}),
        ("--cidfile /a x", {"cidfile": "/a"}),
        ("--cidfile=a -di x", {"cidfile": "a", "detach": True, "interactive": True}),
        ("--replace --name a x", {"replace": True, "name": "a"}),
        ("", {}),
        ("-e", {}),
        ("--name", {}),
    ],
)
def test_relevant_options_are_read(options: str, found: dict[str, object]) -> None:
    command = parsed(f"docker run {options}")
    assert {name: getattr(command, name) for name in NOTHING} == {**NOTHING, **found}


@pytest.mark.parametrize(
    ("text", "cidfile", "init", "line"),
    [
        (
            "docker --debug run -i x --label=a=c",
            "/c",
            False,
            "/p --debug run --label=a=b --cidfile=/c -i x --label=a=c",
        ),
        ("docker container run -i x", None, True, "/p container run --label=a=b --init -i x"),
        ("docker run --cidfile y x", "/c", False, "/p run --label=a=b --cidfile y x"),
        ("docker run", "/c", True, "/p run --label=a=b --cidfile=/c --init"),
    ],
)
def test_labels_are_added_right_after_run(
    text: str, cidfile: str | None, init: bool, line: str
) -> None:
    """Right behind `run`, where it is an option in any case, and the user's own come later."""
    assert parsed(text).run_line("/p", {"a": "b"}, cidfile, init=init) == line.split()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("-i --rm x", []),
        ("-i x", []),
        ("--rm x", ["without `-i`"]),
        ("-it x", ["`-t` turns"]),
        ("-d x", ["`-d` detaches"]),
        ("-i --name a x", ["only one container can have the name 'a'"]),
        ("-i --replace --name a x", ["`--replace` with `--name a`"]),
        ("-i --cidfile a x", ["`--cidfile a` must name a new file"]),
        ("-t --name a x", ["`-t` turns", "without `-i`", "only one container"]),
        ("-d --cidfile a x", ["`-d` detaches", "`--cidfile a` must name a new file"]),
    ],
)
def test_warnings(options: str, says: list[str]) -> None:
    warning = parsed(f"podman run {options}").warning()
    if not says:
        assert warning is None
        return
    assert warning is not None
    start, _, rest = warning.partition(": ")
    assert start == "`podman run`"
    assert "\n" not in rest
    at = -1
    for each in says:
        assert rest.find(each) > at, rest
        at = rest.find(each)


_WORD = st.text("abrun-=/.:", min_size=1, max_size=6)
_FLAG = st.sampled_from([("-i", "--interactive"), ("-t", "--tty"), ("-d", "--detach")])
_VALUED = st.sampled_from(["-e", "-v", "-p", "--env", "--name", "--network", "--cidfile", "--new"])


@st.composite
def _options(draw: st.DrawFn) -> tuple[list[str], dict[str, object]]:
    """Options of `run` in any spelling, and what they mean."""
    arguments: list[str] = []
    meaning: dict[str, object] = {}
    for _ in range(draw(st.integers(0, 6))):
        if draw(st.booleans()):
            short, long = draw(_FLAG)
            value = draw(st.booleans())
            spelled = draw(st.sampled_from([short, long]))
            arguments.append(spelled if value and draw(st.booleans()) else f"{spelled}={value}")
            meaning[long[2:]] = value
        else:
            name, text = draw(_VALUED), draw(_WORD)
            arguments += draw(st.sampled_from([[name, text], [f"{name}={text}"]]))
            if name in ("--name", "--cidfile"):
                meaning[name[2:]] = text
    return arguments, meaning


@given(
    st.sampled_from(["docker", "podman", "nerdctl"]),
    _options(),
    st.lists(_WORD | st.sampled_from(["-i", "-d", "--rm", "--name", "run"]), max_size=4),
)
def test_every_spelling_of_an_option_is_read(
    engine: str, options: tuple[list[str], dict[str, object]], rest: list[str]
) -> None:
    """Whatever the options are and whatever follows the image, both are told apart."""
    arguments, meaning = options
    line = ["run", *arguments, "image", *rest]
    command = parse_container_command(engine, line)
    assert command is not None
    assert {name: getattr(command, name) for name in NOTHING} == {**NOTHING, **meaning}
    run = command.run_line("/p", {"a": "b"}, None, init=False)
    assert run == ["/p", "run", "--label=a=b", *line[1:]]


@given(st.lists(_WORD | st.sampled_from(["run", "container", "--", "-", "-i", "--context"])))
def test_arbitrary_arguments_are_preserved(arguments: list[str]) -> None:
    """Nothing is lost, and nothing fails, whatever is there."""
    command = parse_container_command("docker", arguments)
    if command is not None:
        assert [*command.head, *command.tail] == ["docker", *arguments]
        assert command.head[-1] == "run"
        assert list(command.prefix) == ["docker", *arguments][: len(command.prefix)]


def test_variables_are_named_and_their_values_are_not() -> None:
    command = parsed("docker run -i x")
    line = command.run_line("/bin/docker", {}, None, variables=["A", "B"])
    assert line == ["/bin/docker", "run", "--env=A", "--env=B", "-i", "x"]


@pytest.mark.parametrize(
    ("options", "assigned"),
    [
        ("-i", set()),
        ("-e A -e B=1 --env C=2 --env=D=3 -eE=4 -ie F=", {"B", "C", "D", "E", "F"}),
        ("--env-file f -e A", set()),
        ("-i x -e A=1", set()),
    ],
)
def test_variables_with_a_value_are_known(options: str, assigned: set[str]) -> None:
    assert parsed(f"docker run {options} x").assigned == assigned
