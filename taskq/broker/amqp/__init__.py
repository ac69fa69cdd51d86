"""RabbitMQ through Kombu's pyamqp transport, with a reader, a writer and publisher confirms of our own."""
