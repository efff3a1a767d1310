package attest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/writ-mesh/writ/internal/kubeapi"
)

const (
	kubeletTimeout = 3 * time.Second
	// maxPods bounds the list of a node's pods, in bytes: with 500 pods it has about
	// 5 MB.
	maxPods = 32 << 20
	// podsEvery is how long the list is not asked for again.
	podsEvery = 250 * time.Millisecond
)

// Kubelet is the API of the node's kubelet.
type Kubelet struct {
	// URL is https://host:10250, or http://host:10255 (its read-only port) on a
	// loopback address.
	URL string `yaml:"url"`
	// CAFile has the roots of its certificate; the system's if it is empty.
	CAFile string `yaml:"ca_file"`
	// TokenFile has the token with which it is asked; it is read at each call.
	TokenFile string `yaml:"token_file"`
}

// Validate checks the address.
func (k Kubelet) Validate() error {
	u, err := url.Parse(k.URL)
	switch {
	case k.URL == "":
		return nil
	case err != nil || u.Host == "" || u.Path != "" && u.Path != "/":
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http" && net.ParseIP(u.Hostname()).IsLoopback():
		return nil
	}
	return fmt.Errorf("kubelet.url: %q: want https://host:port, or http://127.0.0.1:port", k.URL)
}

// podFacts are what does not change while a pod lives.
type podFacts struct{ namespace, serviceAccount, name string }

// pods knows the Kubernetes pods of the node.
type pods interface {
	// pod returns errNoPod for a UID that is not known, or not yet.
	pod(ctx context.Context, uid string) (podFacts, error)
}

var errNoPod = errors.New("the kubelet has no pod with this UID on the node")

// kubelet asks the node's kubelet for the list of its pods when a pod is not
// known, and remembers those of the newest list.
type kubelet struct {
	cfg Kubelet

	mu    sync.Mutex
	known map[string]podFacts
	asked time.Time
}

// pod implements pods.
func (k *kubelet) pod(ctx context.Context, uid string) (podFacts, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p, ok := k.known[uid]; ok {
		return p, nil
	}
	if now := time.Now(); now.Sub(k.asked) >= podsEvery {
		k.asked = now
		known, err := k.list(ctx)
		if err != nil {
			return podFacts{}, fmt.Errorf("kubelet: %w", err)
		}
		k.known = known
	}
	if p, ok := k.known[uid]; ok {
		return p, nil
	}
	return podFacts{}, errNoPod
}

func (k *kubelet) list(ctx context.Context) (map[string]podFacts, error) {
	// New pods are rare.
	api := kubeapi.Client{CAFile: k.cfg.CAFile, TokenFile: k.cfg.TokenFile, Timeout: kubeletTimeout, MaxAnswer: maxPods}
	data, err := api.Call(ctx, http.MethodGet, strings.TrimSuffix(k.cfg.URL, "/")+"/pods", nil)
	if err != nil {
		return nil, err
	}
	return parsePods(data)
}

func parsePods(data []byte) (map[string]podFacts, error) {
	var in struct {
		Items []struct {
			Metadata struct {
				Name      string `json:"name"`
				Namespace string `json:"namespace"`
				UID       string `json:"uid"`
			} `json:"metadata"`
			Spec struct {
				ServiceAccountName string `json:"serviceAccountName"`
			} `json:"spec"`
		} `json:"items"`
	}
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, fmt.Errorf("list of pods: %w", err)
	}
	out := make(map[string]podFacts, len(in.Items))
	for _, p := range in.Items {
		out[p.Metadata.UID] = podFacts{namespace: p.Metadata.Namespace, serviceAccount: p.Spec.ServiceAccountName, name: p.Metadata.Name}
	}
	return out, nil
}
