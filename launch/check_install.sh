#!/usr/bin/env bash
# Resolves every extra of pyproject.toml for every platform and Python, and names what cannot be installed there.
# Needs the package index, and uv: `python -m pip install uv`. It downloads metadata only. pip alone cannot do this: with
# --platform it still evaluates environment markers for the machine that it runs on.
#
#   bash launch/check_install.sh            all extras
#   bash launch/check_install.sh train ray  these ("" is the package without extras)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=${UV:-uv}
command -v "$uv" >/dev/null || { echo "error: $uv not found; install it with: python -m pip install uv" >&2; exit 2; }

platforms="aarch64-apple-darwin aarch64-manylinux_2_28 x86_64-manylinux_2_31 x86_64-pc-windows-msvc"
pythons="3.11 3.12 3.13"
# Published as source only, without compiled code, so that it can be built anywhere.
built="--no-binary promise --no-binary nnunetv2 --no-binary dynamic-network-architectures --no-binary batchgenerators \
  --no-binary acvl-utils"
if [ $# = 0 ]; then
  set -- "" $(sed -n '/^\[project.optional-dependencies\]/,/^\[tool/ s/^\([a-z-]*\) = .*/\1/p' pyproject.toml)
fi

# The accelerators exist on Linux only, TPUs beside x86-64 only.
expected() {
  case $1/$2 in
    *cuda/*manylinux* | *tpu/x86_64-manylinux*) false ;;
    *cuda/* | *tpu/*) true ;;
    *) false ;;
  esac
}

missing=0
for extra in "$@"; do
  for platform in $platforms; do
    for version in $pythons; do
      if reason=$("$uv" pip compile pyproject.toml ${extra:+--extra "$extra"} --python-platform "$platform" \
        --python-version "$version" --only-binary :all: $built --quiet 2>&1 >/dev/null); then
        result=yes
      elif expected "$extra" "$platform"; then
        result="no, as expected"
      else
        result=no missing=1
      fi
      printf '%-24s %-26s %-5s %s\n' "${extra:-(none)}" "$platform" "$version" "$result"
      [ "$result" != no ] || sed -n '/cause:/,/^$/p' <<<"$reason" | head -4
    done
  done
done
exit $missing
