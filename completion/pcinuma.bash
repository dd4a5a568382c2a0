# SPDX-License-Identifier: LGPL-2.1-or-later
# Completion of pcinuma for bash. The words per command are kept in step with `pcinuma COMMAND --help` by a test.
# shellcheck shell=bash

_pcinuma() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]} choices=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_pcinuma_words commands)" -- "$word")
        return
    fi
    case $previous in
        --group-by) choices="root-complex switch node" ;;
        --policy) choices="preferred required" ;;
        --cells)
            choices="auto off"
            [ "$command" != policy ] || choices="auto off default"
            ;;
        --link)
            choices="host off"
            [ "$command" != policy ] || choices="host off default"
            ;;
        --memory) choices="strict preferred restrictive" ;;
        --root)
            mapfile -t COMPREPLY < <(compgen -d -- "$word")
            return
            ;;
        --report | --output | --svg)
            mapfile -t COMPREPLY < <(compgen -f -- "$word")
            return
            ;;
    esac
    if [ -n "$choices" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")
    elif [[ $word == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_pcinuma_words "$command")" -- "$word")
    elif [ "$command" = proxy ] && [ "$COMP_CWORD" -eq 2 ]; then
        mapfile -t COMPREPLY < <(compgen -W "enable disable status" -- "$word")
    else
        case $command in
            policy)
                if [ "$COMP_CWORD" -eq 3 ]; then
                    mapfile -t COMPREPLY < <(compgen -W "preferred required off default" -- "$word")
                    return
                fi
                ;;&
            status | plan | apply | revert | enable | disable | policy | cells | verify | explain | topology | paths | attach | detach)
                mapfile -t COMPREPLY < <(compgen -W "$(virsh -q list --all --name 2>/dev/null)" -- "$word")
                ;;
            *) compopt -o default ;;
        esac
    fi
}

_pcinuma_words() {
    case $1 in
        commands) echo "status plan apply revert enable disable policy cells verify explain topology paths attach detach place check capture metrics proxy demo --help --version" ;;
        status) echo "--help --check --json" ;;
        verify) echo "--help --timeout --json" ;;
        check) echo "--help --json" ;;
        proxy) echo "--help --root --json" ;;
        plan) echo "--help --all --replan --diff --json" ;;
        apply) echo "--help --all --replan --dry-run --json" ;;
        revert) echo "--help --all --dry-run --json" ;;
        enable) echo "--help --all --json" ;;
        disable) echo "--help --revert --json" ;;
        policy) echo "--help --group-by --cells --link --json" ;;
        cells) echo "--help --apply --remove --replan --memory --diff --root --json" ;;
        explain) echo "--help --root --json" ;;
        topology) echo "--help --root --live --all --nccl --install --svg --timeout --json" ;;
        paths) echo "--help --root --json" ;;
        attach) echo "--help --live --config --json" ;;
        detach) echo "--help --live --config --timeout --json" ;;
        place) echo "--help --root --group-by --policy --cells --link --replan --report" ;;
        metrics) echo "--help --output --openmetrics" ;;
        capture) echo "--help --root --force --json" ;;
        demo) echo "--help --keep --quick --json" ;;
    esac
}

complete -F _pcinuma pcinuma
