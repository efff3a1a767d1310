// Package kubetest runs the API of a real Kubernetes cluster for tests: etcd and
// kube-apiserver, which `make kubernetes-tools` builds. There are no nodes and no
// controllers, so that pods never run and nothing is collected as garbage.
package kubetest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"sigs.k8s.io/yaml"

	"github.com/writ-mesh/writ/internal/kubeapi"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

// Issuer is that of the cluster's tokens.
const Issuer = "https://kubernetes.default.svc.cluster.local"

// adminToken is that of a user who may do everything.
const adminToken = "admin-of-a-test"

// budget is how long the programs may take to start; they take three seconds alone on
// a machine.
const budget = 90 * time.Second

// Cluster is the API of a cluster.
type Cluster struct {
	// URL is the API server's, https://host:port, CAFile has its root, and TokenFile
	// the token of a user who may do everything.
	URL, CAFile, TokenFile string

	dir string
	key *rsa.PrivateKey // of tokens
	// program and arguments of the API server, and how it runs now.
	line   []string
	server *proctest.Process
}

var shared proctest.Shared[*Cluster] //nolint:gochecknoglobals // what the tests of a package share

// Shared is a cluster that tests which run at the same time share, each with namespaces
// of its own, since to start one takes seconds. It is not to be restarted.
func Shared(t testing.TB) *Cluster {
	t.Helper()
	return shared.Get(t, Start)
}

// Start runs a cluster until t ends. Without the programs the test is skipped: they
// take minutes to build, so that CI is without them too.
func Start(t testing.TB) *Cluster {
	t.Helper()
	etcd, apiserver := program(t, "etcd"), program(t, "kube-apiserver")
	c := &Cluster{dir: t.TempDir()}
	var err error
	if c.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	address, store := proctest.Address(t), "http://"+proctest.Address(t)
	peer := "http://" + proctest.Address(t)
	c.URL, c.CAFile, c.TokenFile = "https://"+address, c.path("ca.pem"), c.path("admin.token")
	c.files(t)
	proctest.Start(t, etcd, "--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", store, "--advertise-client-urls", store, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	c.line = []string{
		apiserver, "--etcd-servers=" + store, "--bind-address=127.0.0.1", "--secure-port=" + port,
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16",
		"--tls-cert-file=" + c.path("server.pem"), "--tls-private-key-file=" + c.path("server.key"), "--token-auth-file=" + c.path("users.csv"),
		"--service-account-issuer=" + Issuer, "--api-audiences=" + Issuer,
		"--service-account-signing-key-file=" + c.path("tokens.key"), "--service-account-key-file=" + c.path("tokens.pub"),
		"--authorization-mode=RBAC", "--anonymous-auth=false", "--profiling=false",
		// A fifth of what its start costs is for what no test asks of it.
		"--enable-priority-and-fairness=false",
		"--runtime-config=apps/v1=false,autoscaling/v1=false,autoscaling/v2=false,batch/v1=false,policy/v1=false,certificates.k8s.io/v1=false,events.k8s.io/v1=false",
	}
	c.run(t)
	return c
}

// run starts the API server and waits until it is ready.
func (c *Cluster) run(t testing.TB) {
	t.Helper()
	c.server = proctest.Start(t, c.line[0], c.line[1:]...)
	proctest.Eventually(t, budget, func() error {
		select {
		case <-c.server.Done():
			t.Fatal("kube-apiserver ended")
		default:
		}
		_, err := c.Call(t, http.MethodGet, "/readyz", nil)
		return err
	})
}

// Restart kills the API server and starts it again; t has to be that of Start, or live
// as long.
func (c *Cluster) Restart(t testing.TB) {
	t.Helper()
	c.server.Kill()
	c.run(t)
}

// program is one that was built, beside the go.mod file of the checkout.
func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil && filepath.Dir(dir) != dir {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, ".tools", "bin", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is missing: make kubernetes-tools builds it", name)
	}
	return path
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

// files writes what the API server reads.
func (c *Cluster) files(t testing.TB) {
	t.Helper()
	root := pkitest.NewRoot(t, "")
	leaf := pkitest.Leaf("", 24*time.Hour)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	cert, key := root.Issue(t, leaf)
	public, err := x509.MarshalPKIXPublicKey(c.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"ca.pem": root.PEM(), "server.pem": cert, "server.key": key, "admin.token": []byte(adminToken),
		"users.csv":  []byte(adminToken + ",admin,admin,system:masters\n"),
		"tokens.pub": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
		"tokens.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	} {
		if err := os.WriteFile(c.path(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Call calls the API as the user who may do everything, with body as JSON.
func (c *Cluster) Call(t testing.TB, method, path string, body any) ([]byte, error) {
	t.Helper()
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	api := kubeapi.Client{CAFile: c.CAFile, TokenFile: c.TokenFile, Accept: "*/*", Timeout: 10 * time.Second, MaxAnswer: 16 << 20}
	return api.Call(t.Context(), method, c.URL+path, data)
}

// must is Call for what succeeds. The part of the answer that is wanted goes to into,
// unless that is nil.
func (c *Cluster) must(t testing.TB, method, path string, body, into any) {
	t.Helper()
	data, err := c.Call(t, method, path, body)
	if err == nil && into != nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// object is one of the API, or a part of it.
type object = map[string]any

// created is what is told of a new object.
type created struct {
	Metadata struct {
		UID string `json:"uid"`
	} `json:"metadata"`
}

// Namespace makes a namespace, unless it is there.
func (c *Cluster) Namespace(t testing.TB, name string) {
	t.Helper()
	_, err := c.Call(t, http.MethodPost, "/api/v1/namespaces", object{"metadata": object{"name": name}})
	if status := new(kubeapi.StatusError); err != nil && (!errors.As(err, &status) || status.Code != http.StatusConflict) {
		t.Fatal(err)
	}
}

// Account makes a service account and returns its UID.
func (c *Cluster) Account(t testing.TB, namespace, name string) string {
	t.Helper()
	var a created
	c.must(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts", object{"metadata": object{"name": name}}, &a)
	return a.Metadata.UID
}

// Pod makes a pod that runs as a service account on a node, or, without one, waits to
// be scheduled, and returns its UID.
func (c *Cluster) Pod(t testing.TB, namespace, name, account, node string) string {
	t.Helper()
	var p created
	c.must(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/pods", object{"metadata": object{"name": name}, "spec": object{
		"serviceAccountName": account, "nodeName": node, "terminationGracePeriodSeconds": 0,
		"containers": []object{{"name": "c", "image": "none"}},
	}}, &p)
	return p.Metadata.UID
}

// Node makes a node.
func (c *Cluster) Node(t testing.TB, name string) {
	t.Helper()
	c.must(t, http.MethodPost, "/api/v1/nodes", object{"metadata": object{"name": name}}, nil)
}

// Delete removes the object with that path, at once.
func (c *Cluster) Delete(t testing.TB, path string) {
	t.Helper()
	c.must(t, http.MethodDelete, path+"?gracePeriodSeconds=0", nil, nil)
}

// Token has the cluster make a token of a service account, as kubelet does for a
// projected volume: bound to a pod unless that is empty.
func (c *Cluster) Token(t testing.TB, namespace, account, pod, podUID, audience string) string {
	t.Helper()
	spec := object{"audiences": []string{audience}, "expirationSeconds": 600}
	if pod != "" {
		spec["boundObjectRef"] = object{"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": podUID}
	}
	var answer struct {
		Status struct {
			Token string `json:"token"`
		} `json:"status"`
	}
	c.must(t, http.MethodPost, "/api/v1/namespaces/"+namespace+"/serviceaccounts/"+account+"/token", object{"spec": spec}, &answer)
	return answer.Status.Token
}

// Sign makes a token with the cluster's own key, whatever it says.
func (c *Cluster) Sign(t testing.TB, claims map[string]any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(c.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(der) // as the cluster names its keys
	return sign(t, c.key, base64.RawURLEncoding.EncodeToString(sum[:]), claims)
}

func sign(t testing.TB, key crypto.Signer, id string, claims map[string]any) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Apply makes the objects of a manifest, the file beside or above the test's folder.
func (c *Cluster) Apply(t testing.TB, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, doc := range bytes.Split(data, []byte("\n---\n")) {
		var o struct {
			APIVersion string `json:"apiVersion"`
			Kind       string `json:"kind"`
			Metadata   struct {
				Namespace string `json:"namespace"`
			} `json:"metadata"`
		}
		if err := yaml.UnmarshalStrict(doc, new(any)); err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(doc, &o); err != nil || o.Kind == "" {
			t.Fatalf("%s: %v in %s", file, err, doc)
		}
		path := "/api/" + o.APIVersion
		if strings.Contains(o.APIVersion, "/") {
			path = "/apis/" + o.APIVersion
		}
		if o.Metadata.Namespace != "" {
			path += "/namespaces/" + o.Metadata.Namespace
		}
		var body any
		if err := yaml.Unmarshal(doc, &body); err != nil {
			t.Fatal(err)
		}
		c.must(t, http.MethodPost, fmt.Sprintf("%s/%ss", path, strings.ToLower(o.Kind)), body, nil)
	}
}
