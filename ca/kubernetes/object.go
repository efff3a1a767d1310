package kubernetes

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/writ-mesh/writ/internal/kubeapi"
)

// metadata is what is used of an object's.
type metadata struct {
	Name        string            `json:"name,omitempty"`
	Namespace   string            `json:"namespace,omitempty"`
	UID         string            `json:"uid,omitempty"`
	Version     string            `json:"resourceVersion,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owners      []owner           `json:"ownerReferences,omitempty"`
	// Deleted is when its deletion was asked for; empty if it was not.
	Deleted string `json:"deletionTimestamp,omitempty"`
}

// owner is with whom an object goes.
type owner struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

// object is what is used of service accounts, of pods, and of Secrets in lists.
type object struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		Node    string `json:"nodeName"`
		Account string `json:"serviceAccountName"`
	} `json:"spec"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

// name is an object's within its kind.
type name struct{ namespace, name string }

func (n name) String() string { return n.namespace + "/" + n.name }

func (o object) name() name { return name{o.Metadata.Namespace, o.Metadata.Name} }

// list is a page of objects.
type list struct {
	Metadata struct {
		Version  string `json:"resourceVersion"`
		Continue string `json:"continue"`
	} `json:"metadata"`
	Items []object `json:"items"`
}

// event is a line of a watch. Object is a Status if Type is "ERROR".
type event struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// These ask for a list and for an object, also in a watch, without what objects hold.
const (
	listOfMetadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
	metadataOnly   = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
)

// collection is the address of the objects of a kind of the core group.
func collection(api, namespace, kind string) string {
	base := strings.TrimSuffix(api, "/") + "/api/v1/"
	if namespace != allNamespaces {
		base += "namespaces/" + url.PathEscape(namespace) + "/"
	}
	return base + kind
}

// is tells whether the API answered with that status.
func is(err error, code int) bool {
	e := new(kubeapi.StatusError)
	return errors.As(err, &e) && e.Code == code
}

// expired tells whether what was asked for is older than the API remembers.
func expired(err error) bool { return is(err, http.StatusGone) || errors.Is(err, errExpired) }
