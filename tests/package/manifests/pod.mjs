// Whether a file is a Pod by the schema of the Kubernetes API, and one that the restricted pod security standard lets in.
// usage: pod.mjs FILE
import fs from 'node:fs';
import yaml from 'js-yaml';
import { Pod } from 'kubernetes-models/v1';

const refuse = why => { console.error(why); process.exit(1); };
const pod = yaml.load(fs.readFileSync(process.argv[2], 'utf8'));
try {
    new Pod(pod).validate();
} catch (e) {
    refuse(e.message);
}
const spec = pod.spec, own = spec.securityContext ?? {};
for (const name of ['hostNetwork', 'hostPID', 'hostIPC'])
    if (spec[name]) refuse(`${name} is set`);
const allowed = ['configMap', 'csi', 'downwardAPI', 'emptyDir', 'ephemeral', 'persistentVolumeClaim', 'projected', 'secret'];
for (const { name, ...kinds } of spec.volumes ?? [])
    for (const kind of Object.keys(kinds))
        if (!allowed.includes(kind)) refuse(`volume ${name} is a ${kind}`);
for (const container of [...spec.containers, ...spec.initContainers ?? []]) {
    const context = { ...own, ...container.securityContext };
    if (context.privileged || context.allowPrivilegeEscalation !== false) refuse(`${container.name}: allowPrivilegeEscalation is not false`);
    if (context.runAsNonRoot !== true || context.runAsUser === 0) refuse(`${container.name}: may run as root`);
    if (!['RuntimeDefault', 'Localhost'].includes(context.seccompProfile?.type)) refuse(`${container.name}: has no seccomp profile`);
    if (!context.capabilities?.drop?.includes('ALL')) refuse(`${container.name}: keeps capabilities`);
    if (context.capabilities.add?.some(c => c !== 'NET_BIND_SERVICE')) refuse(`${container.name}: adds capabilities`);
    if (!container.resources?.limits?.memory) refuse(`${container.name}: has no memory limit`);
}
