package nodeattest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/writ-mesh/writ/internal/kubeapi"
)

const (
	// apiTimeout bounds one call of a cluster's API; Join's caller waits for it.
	apiTimeout = 5 * time.Second
	// maxAnswer bounds what a cluster answers, in bytes.
	maxAnswer = 1 << 20
	// keysAge is how long keys are used until they are fetched anew, keysMaxAge how
	// long if that fails.
	keysAge    = 5 * time.Minute
	keysMaxAge = time.Hour
	// keysRetry is how long they are not fetched again, also for a key that is not
	// known: anybody may send a token that names one.
	keysRetry = 10 * time.Second
)

// api is how a cluster's API server is called.
type api struct{ kubeapi.Client }

// acceptKeys asks for a JSON Web Key Set (RFC 7517, section 8.5.2): an API server that
// is asked for JSON only says that it has none.
const acceptKeys = "application/jwk-set+json, application/json"

// newAPI makes an api that asks for an answer of that type, JSON if it is empty.
func newAPI(cfg Kubernetes, accept string) *api {
	return &api{kubeapi.Client{CAFile: cfg.CAFile, TokenFile: cfg.TokenFile, Accept: accept, Timeout: apiTimeout, MaxAnswer: maxAnswer}}
}

// call sends a request and reads the answer. Its errors wrap ErrUnavailable.
func (a *api) call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	data, err := a.Call(ctx, method, url, body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return data, nil
}

// keys are the public keys of a cluster.
type keys struct {
	file, url string
	api       *api
	now       func() time.Time

	mu sync.Mutex
	// set is what was fetched at fetched; tried is the last attempt.
	set            jose.JSONWebKeySet
	fetched, tried time.Time
	// modified is the file's.
	modified time.Time
}

// get finds a key by its id.
func (k *keys) get(ctx context.Context, id string) (jose.JSONWebKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.refresh(ctx, id); err != nil {
		return jose.JSONWebKey{}, err
	}
	for _, key := range k.set.Key(id) {
		if key.Valid() && key.IsPublic() && (key.Use == "" || key.Use == "sig") {
			return key, nil
		}
	}
	return jose.JSONWebKey{}, fmt.Errorf("the token is signed with the key %.100q, which is none of the cluster's", id)
}

// refresh needs k.mu.
func (k *keys) refresh(ctx context.Context, id string) error {
	if k.file != "" {
		return k.read()
	}
	now := k.now()
	age := now.Sub(k.fetched)
	if !k.fetched.IsZero() && age < keysAge && len(k.set.Key(id)) > 0 || now.Sub(k.tried) < keysRetry && !k.fetched.IsZero() {
		return nil
	}
	k.tried = now
	data, err := k.api.call(ctx, http.MethodGet, k.url, nil)
	if err == nil {
		err = k.take(data)
	}
	if err != nil {
		if k.fetched.IsZero() || age > keysMaxAge {
			return err
		}
		return nil // those at hand are good for a while
	}
	k.fetched = now
	return nil
}

func (k *keys) read() error {
	info, err := os.Stat(k.file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if info.ModTime().Equal(k.modified) {
		return nil
	}
	data, err := os.ReadFile(k.file)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err := k.take(data); err != nil {
		return err
	}
	k.modified = info.ModTime()
	return nil
}

func (k *keys) take(data []byte) error {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(data, &set); err != nil {
		return fmt.Errorf("%w: the cluster's keys: %w", ErrUnavailable, err)
	}
	if len(set.Keys) == 0 {
		return fmt.Errorf("%w: the cluster has no keys", ErrUnavailable)
	}
	k.set = set
	return nil
}

// reviewer asks a cluster's API about tokens.
type reviewer struct {
	url       string
	audiences []string
	api       *api
}

// tokenReview is what is used of authentication.k8s.io/v1 TokenReview.
type tokenReview struct {
	APIVersion string       `json:"apiVersion"`
	Kind       string       `json:"kind"`
	Spec       reviewSpec   `json:"spec"`
	Status     reviewStatus `json:"status"`
}

type reviewSpec struct {
	Token     string   `json:"token"`
	Audiences []string `json:"audiences"`
}

type reviewStatus struct {
	Authenticated bool     `json:"authenticated"`
	Audiences     []string `json:"audiences"`
	Error         string   `json:"error"`
	User          struct {
		Username string              `json:"username"`
		Extra    map[string][]string `json:"extra"`
	} `json:"user"`
}

const (
	reviewVersion = "authentication.k8s.io/v1"
	reviewKind    = "TokenReview"
	reviewPath    = "/apis/authentication.k8s.io/v1/tokenreviews"
	// extraPrefix is that of what the API says about a token besides the user.
	extraPrefix = "authentication.kubernetes.io/"
)

var errReviewed = errors.New("the cluster's API does not know the token")

func (r *reviewer) ask(ctx context.Context, token string) (bound, error) {
	body, err := json.Marshal(tokenReview{APIVersion: reviewVersion, Kind: reviewKind, Spec: reviewSpec{Token: token, Audiences: r.audiences}})
	if err != nil {
		return bound{}, err
	}
	data, err := r.api.call(ctx, http.MethodPost, strings.TrimSuffix(r.url, "/")+reviewPath, body)
	if err != nil {
		return bound{}, err
	}
	return r.read(data)
}

// read takes the API's answer.
func (r *reviewer) read(data []byte) (bound, error) {
	var a tokenReview
	if err := json.Unmarshal(data, &a); err != nil || a.Kind != reviewKind || a.APIVersion != reviewVersion {
		return bound{}, fmt.Errorf("%w: the cluster's API did not answer with a %s of %s", ErrUnavailable, reviewKind, reviewVersion)
	}
	if !a.Status.Authenticated {
		if a.Status.Error != "" {
			return bound{}, fmt.Errorf("%w: %.300q", errReviewed, a.Status.Error)
		}
		return bound{}, errReviewed
	}
	// An API that does not know audiences answers with none, and then the token may
	// have been made for anybody.
	if !slices.ContainsFunc(a.Status.Audiences, func(s string) bool { return slices.Contains(r.audiences, s) }) {
		return bound{}, errors.New("the cluster's API does not say that the token was made for this authority")
	}
	rest, ok := strings.CutPrefix(a.Status.User.Username, "system:serviceaccount:")
	var b bound
	if b.namespace, b.serviceAccount, _ = strings.Cut(rest, ":"); !ok || b.namespace == "" || b.serviceAccount == "" {
		return bound{}, fmt.Errorf("the token is that of %.200q, which is no service account", a.Status.User.Username)
	}
	for key, into := range map[string]*string{"pod-name": &b.pod, "pod-uid": &b.podUID, "node-name": &b.node} {
		switch values := a.Status.User.Extra[extraPrefix+key]; len(values) {
		case 0:
		case 1:
			*into = values[0]
		default:
			return bound{}, fmt.Errorf("the cluster's API names %d values of %s", len(values), key)
		}
	}
	return b, nil
}
