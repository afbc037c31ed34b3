# Environments beside the tested one; sourced by .ci/run and scripts/nightly.
#
# What is compared with ours lives in environments of its own, so that nothing of it can be imported
# by what is tested.  They are kept in .venvs until their requirements change.

# Makes an environment, or names what could not be installed and fails.
environment() { # folder, requirements, pip arguments before and after them
    local folder=$PWD/.venvs/$1 requirements=$2 first=$3 wanted installed
    installed=$folder/installed.txt
    shift 3
    wanted=$(printf '%s\n' "$first" "$*" && cat "$requirements") || return 1
    if [ -f "$installed" ] && [ "$wanted" = "$(<"$installed")" ]; then return 0; fi
    # A chain, as `set -e` does not hold in a function whose status is asked for.
    "$(dirname "${BASH_SOURCE[0]}")/../scripts/new-venv" "$folder" &&
        { [ -z "$first" ] || "$folder/bin/python" -m pip install --quiet "$first"; } &&
        "$folder/bin/python" -m pip install --quiet -r "$requirements" &&
        { [ $# = 0 ] || "$folder/bin/python" -m pip install --quiet --no-deps "$@"; } &&
        printf '%s\n' "$wanted" >"$installed" ||
        { echo "NOT INSTALLED: $requirements" >&2; return 1; }
}

# Waits for background jobs; fails if one of them did.
all_of() { # process ids
    local job status=0
    for job in "$@"; do wait "$job" || status=1; done
    return $status
}

# Makes the tested environment: the built wheel in a new virtual environment, which it then enters.
tested_environment() { # folder
    local users=cpu,formats,serve,export,calibration,viz constraints=()
    "$(dirname "${BASH_SOURCE[0]}")/../scripts/new-venv" "$1"
    # shellcheck disable=SC1091  # made above; Windows has the other name
    if [ -d "$1/Scripts" ]; then source "$1/Scripts/activate"; else source "$1/bin/activate"; fi
    pip install --quiet build
    python -m build --wheel --outdir "$1/wheel" >"$1/build.log"
    if [ "${MT3_TEST_DEPENDENCIES:-newest}" = oldest ]; then
        pip install --quiet uv
        uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct --extra "$users" \
            --only-binary :all: pyproject.toml --output-file "$1/oldest.txt"
        constraints=(--constraint "$1/oldest.txt")
    fi
    # The form for empty lists that bash 3.2 of macOS knows.
    pip install --quiet ${constraints[@]+"${constraints[@]}"} "$(echo "$1"/wheel/*.whl)[$users,dev,lint]"
    # It asks for PyAudio, which has to be compiled and is not needed to render into an array.
    pip install --quiet --no-deps tinysoundfont==0.3.7 ||
        echo "tinysoundfont is not installed: tests with soundfonts are skipped" >&2
}
