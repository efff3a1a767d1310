// Command writ-ratelimit is Writ's quota service. In the mesh it is started with
// -config; alone it takes envoyproxy/ratelimit's place:
//
//	writ-ratelimit -descriptors DIR -listen 127.0.0.1:8081 [-redis HOST:PORT]
package main

import (
	"context"

	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/ratelimit"
)

func main() {
	service.Main(service.Spec[ratelimit.Config]{
		Name:     "writ-ratelimit",
		About:    "tells Envoys whether requests are within their quotas (RLS v3)",
		Example:  "writ-ratelimit -descriptors limits -listen 127.0.0.1:8081",
		Default:  ratelimit.DefaultConfig,
		Common:   func(c *ratelimit.Config) *service.Common { return &c.Common },
		Flags:    (*ratelimit.Config).Flags,
		Validate: (*ratelimit.Config).Validate,
		Run: func(ctx context.Context, c ratelimit.Config, rt *service.Runtime) error {
			s, err := ratelimit.New(c, rt)
			if err != nil {
				return err
			}
			return s.Run(ctx)
		},
	})
}
