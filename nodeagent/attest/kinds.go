package attest

import (
	"github.com/writ-mesh/writ/internal/fact"
)

// The kinds of facts that are found out here, which are all that package fact
// knows.
const (
	// kindUID and kindGID are those that the kernel recorded when the caller
	// connected.
	kindUID fact.Kind = "unix:uid"
	kindGID fact.Kind = "unix:gid"
	// The others are of the process as it is now.
	kindSupplementaryGID fact.Kind = "unix:supplementary_gid"
	kindPath             fact.Kind = "unix:path"
	kindSHA256           fact.Kind = "unix:sha256"
	kindParentPath       fact.Kind = "unix:parent_path"
	kindContainerID      fact.Kind = "container:id"
	kindDockerLabel      fact.Kind = "docker:label"
	kindDockerImage      fact.Kind = "docker:image"
	kindDockerImageID    fact.Kind = "docker:image_id"
	kindDockerName       fact.Kind = "docker:name"
	kindPodUID           fact.Kind = "k8s:pod-uid"
	kindPodNamespace     fact.Kind = "k8s:ns"
	kindPodAccount       fact.Kind = "k8s:sa"
	kindPodName          fact.Kind = "k8s:pod-name"
)

// written is a fact in the form in which registrations have it.
func written(k fact.Kind, value string) string { return string(k) + ":" + value }

// kinds is a set of kinds of facts.
type kinds uint32

// kindsOf gives each kind its place in a set.
func kindsOf(list ...fact.Kind) kinds {
	var out kinds
	for _, k := range list {
		out |= 1 << place(k)
	}
	return out
}

// place is a kind's in a set. It is asked dozens of times for each caller.
func place(k fact.Kind) int {
	switch k {
	case kindUID:
		return 0
	case kindGID:
		return 1
	case kindSupplementaryGID:
		return 2
	case kindPath:
		return 3
	case kindSHA256:
		return 4
	case kindParentPath:
		return 5
	case kindContainerID:
		return 6
	case kindDockerLabel:
		return 7
	case kindDockerImage:
		return 8
	case kindDockerImageID:
		return 9
	case kindDockerName:
		return 10
	case kindPodUID:
		return 11
	case kindPodNamespace:
		return 12
	case kindPodAccount:
		return 13
	case kindPodName:
		return 14
	}
	return 31 // a kind that is found out nowhere, which a test keeps from being
}

// has tells whether one of list is in the set.
func (k kinds) has(list ...fact.Kind) bool { return k&kindsOf(list...) != 0 }

func allKinds() kinds { return kindsOf(fact.Kinds()...) }
