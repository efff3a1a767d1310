package listsource

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

// Limits say where lists may come from.
type Limits struct {
	fetch.Guard
	// ReadFile reads a file that an object names.
	ReadFile func(name string) ([]byte, error)
}

// maxRedirects is how often a server may send on.
const maxRedirects = 3

// get looks at a source once. tag is that of the answer that is in force.
func (l Limits) get(ctx context.Context, src *model.AccessSource, tag string) (fetch.Answer, error) {
	if src.File != "" {
		body, err := l.ReadFile(src.File)
		return fetch.Answer{Body: body}, err
	}
	r := fetch.Request{URL: src.URL, Accept: "text/plain, */*;q=0.1", Tag: tag, Timeout: src.Timeout, Redirects: maxRedirects, MaxBody: maxBody}
	if src.CAFile != "" {
		pem, err := l.ReadFile(src.CAFile)
		if err != nil {
			return fetch.Answer{}, fmt.Errorf("caCertificates: %w", err)
		}
		r.Roots = x509.NewCertPool()
		if !r.Roots.AppendCertsFromPEM(pem) {
			return fetch.Answer{}, errors.New("caCertificates: the file has no certificate in PEM")
		}
	}
	return l.Get(ctx, r)
}
