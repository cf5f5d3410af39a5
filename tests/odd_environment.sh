#!/usr/bin/env bash
# A sample of the tests as strange machines run them: empty and odd variables, a home and a working
# directory with spaces and other letters, a locale without UTF-8, no terminal, a user without rights.
#     tests/odd_environment.sh BIN    BIN: the folder of the environment's python
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$(cd "$1" && pwd)"

folder="$(mktemp -d)/a copy of the project"
trap 'rm -rf "$(dirname "$folder")"' EXIT
mkdir -p "$folder" "$folder/home sweet home"
git ls-files -z | xargs -0 cp --parents --target-directory "$folder"
chmod -R a+rwX "$(dirname "$folder")"

# Root becomes nobody; where nobody may not read the environment, root without its privileges.
as=()
if [ "$(id -u)" = 0 ]; then
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    # A child: the first program is still started with root's privileges.
    "${as[@]}" sh -c '"$0" -c pass' "$bin/python" 2> /dev/null || as=(setpriv --inh-caps=-all --bounding-set=-all)
fi
echo "odd environment: ${as[*]:-the same user}"
sample=(
    tests/data tests/store/test_local.py tests/engines/server/test_process.py
    tests/store/test_lock.py tests/engines/server/test_generator.py tests/settings/test_spin.py
    tests/settings/test_yaml.py tests/report/test_history.py tests/report/test_status.py tests/test_save_folder.py
    tests/test_data_commands.py tests/test_errors.py tests/test_resume.py tests/demo/test_world.py
)
cd "$folder"
env -i PATH="$bin:/usr/bin:/bin" HOME="$folder/home sweet home" TERM=dumb COLUMNS=20 \
    LC_ALL=POSIX PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHONIOENCODING=ascii:backslashreplace \
    PYTHONPATH="$folder:$folder/kernels" PYTHONDONTWRITEBYTECODE=1 \
    MAKEFLAGS= CUDA_VISIBLE_DEVICES= EMPTY= STRANGE=$'7\n\xff' TMPDIR="$folder" \
    http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 WANDB_MODE=disabled \
    "${as[@]}" "$bin/python" -m pytest -q -p no:cacheprovider -m "not slow and not gpu" \
    "${sample[@]}" < /dev/null 2>&1 | cat
