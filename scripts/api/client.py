"""A VM is created, started, stopped and deleted with the client that was generated from the OpenAPI document."""

import os
import ssl
import sys

sys.path.insert(0, sys.argv[1])
from maru_client import AuthenticatedClient
from maru_client.api.vms import create_vm, delete_vm, list_vms, show_vm, start_vm, stop_vm
from maru_client.models import Boot, Task, TaskState, Vm, VmSpec, VmState

client = AuthenticatedClient(
    base_url=os.environ["MARU_API"],
    token=os.environ["MARU_TOKEN"],
    verify_ssl=ssl.create_default_context(cafile=os.environ["MARU_CA"]),
)


def done(answer):
    assert isinstance(answer, Task) and answer.state == TaskState.DONE, answer
    return answer


def state():
    vm = show_vm.sync("generated", client=client)
    assert isinstance(vm, Vm), vm
    return vm.state


made = create_vm.sync(client=client, body=VmSpec(name="generated", memory_bytes=64 << 20, boot=Boot(kernel="local:vmlinuz")))
assert isinstance(made, Vm) and made.state == VmState.OFF, made
again = create_vm.sync_detailed(client=client, body=made.spec)
assert again.status_code == 409 and again.parsed.code == "name-taken", again
done(start_vm.sync("generated", client=client, wait=20))
assert state() == VmState.RUNNING
assert "generated" in [vm.spec.name for vm in list_vms.sync(client=client).items]
done(stop_vm.sync("generated", client=client, wait=20))
assert state() == VmState.OFF
done(delete_vm.sync("generated", client=client, wait=20))
assert show_vm.sync_detailed("generated", client=client).status_code == 404
print("    created, started, stopped and deleted a VM")
