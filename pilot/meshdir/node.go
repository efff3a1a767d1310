package meshdir

import (
	"cmp"

	corev1 "k8s.io/api/core/v1"

	"github.com/writ-mesh/writ/pilot/model"
)

// subzoneLabel is Istio's, below those of Kubernetes.
const subzoneLabel = "topology.istio.io/subzone"

// checkNode: of a Node only the labels count, which are checked with the metadata.
func checkNode(c *checker) {
	if localityOfNode(c.object.meta.Labels) == "" {
		c.warnf("metadata.labels", "nothing is read of a Node but where it is, and no label says so: write %s or %s", corev1.LabelTopologyRegion, corev1.LabelTopologyZone)
	}
}

// localityOfNode is region/zone/subzone as Istio reads it of a Node: what the labels
// were called before Kubernetes 1.17 counts where the newer ones are not there.
func localityOfNode(labels map[string]string) string {
	return model.LocalityOf(map[string]string{
		corev1.LabelTopologyRegion: cmp.Or(labels[corev1.LabelTopologyRegion], labels[corev1.LabelFailureDomainBetaRegion]),
		corev1.LabelTopologyZone:   cmp.Or(labels[corev1.LabelTopologyZone], labels[corev1.LabelFailureDomainBetaZone]),
		subzoneLabel:               labels[subzoneLabel],
	})
}

// collectNodes notes where the nodes are.
func (a *assembler) collectNodes() {
	a.nodes = map[string]string{}
	for _, o := range a.objects["Node"] {
		a.nodes[o.meta.Name] = localityOfNode(o.meta.Labels)
	}
}
