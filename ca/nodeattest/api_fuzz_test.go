package nodeattest

import "testing"

// FuzzReview reads any answer about a token: who is taken for somebody has a service
// account in a namespace.
func FuzzReview(f *testing.F) {
	const head = `{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": {"authenticated": true, `
	for _, seed := range []string{
		head + `"audiences": ["writ-ca"], "user": {"username": "system:serviceaccount:a:b", "extra": {"authentication.kubernetes.io/node-name": ["n"]}}}}`,
		head + `"audiences": [], "user": {"username": "system:serviceaccount:a:b"}}}`,
		head + `"audiences": ["writ-ca"], "user": {"username": "system:serviceaccount::b"}}}`,
		head + `"audiences": ["writ-ca"], "user": {"username": "root", "extra": {"authentication.kubernetes.io/pod-uid": ["a", "b"]}}}}`,
		`{"status": {"authenticated": true}}`, "null", "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := (&reviewer{audiences: []string{"writ-ca"}}).read(data)
		if err != nil {
			return
		}
		if b.namespace == "" || b.serviceAccount == "" {
			t.Errorf("%q is %+v", data, b)
		}
	})
}
